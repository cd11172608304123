"""Faults of the disk, each in turn; and a soak test that is ended leaves nothing behind."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
LINE = re.compile(
    r"names (?:are|cannot be) exchanged: (\d+) points \(kill (\d+), error (\d+), no space (\d+), "
    r"power loss (\d+)\), (\d+) survived"
)


def test_faults_of_the_disk_are_survived(launch):
    """Every seventh: all of them take a minute on a machine that is busy."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        out = launch.python("tools/dev/soak.py", "--faults", 7, "--folder", folder)
    found = [[int(number) for number in line] for line in LINE.findall(out)]
    assert len(found) == 2, out
    for total, killed, failed, full, power, survived in found:
        assert killed == failed == full > 10
        assert power > 3 * killed
        assert survived == total == killed + failed + full + power


def rank_of(soak: subprocess.Popen) -> psutil.Process | None:
    for process in psutil.Process(soak.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # helpers of train.sh come and go
            if "-u" in process.cmdline():
                return process
    return None


def test_ended_by_a_signal_it_ends_its_job():
    command = [sys.executable, "tools/dev/soak.py", "--kills", "1", "--processes", "1"]
    soak = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while rank_of(soak) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert rank_of(soak) is not None
    family = psutil.Process(soak.pid).children(recursive=True)
    assert len(family) >= 2  # the launcher, and the rank
    soak.send_signal(signal.SIGTERM)
    assert soak.wait(20) == 128 + signal.SIGTERM
    assert psutil.wait_procs(family, timeout=10)[1] == []
