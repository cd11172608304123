"""Jobs of the launcher whose ranks are small programs."""

from __future__ import annotations

import sys
import time

LAUNCH = [sys.executable, "-m", "libai_ext.launch", "--nproc-per-node"]


def alive(tmp_path):
    """Processes of the job that still run."""
    path = tmp_path / "pids"
    pids = path.read_text().split() if path.exists() else []
    running = []
    for pid in pids:
        try:
            state = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            continue
        if state != "Z":
            running.append(pid)
    return running


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()
