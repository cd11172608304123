"""A rank that does not come on, in a real run of two."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # real launches

ROOT = Path(__file__).resolve().parents[2]
ITERATIONS = 20


def children(pid):
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


def test_a_stuck_step_shows_every_ranks_stack(digits, tmp_path):
    """The only data worker of rank 1 is stopped: rank 1 waits for data, rank 0 for rank 1."""
    metrics, output = tmp_path / "run/metrics.jsonl", tmp_path / "output"

    def done():
        return len(metrics.read_text().splitlines()) if metrics.exists() else 0

    command = [
        *("bash", "tools/train.sh", "projects/MAE/train_net.py"),
        *("projects/MAE/configs/mae_digits.py", "2"),
        f"data.train=[{digits}/train]",
        f"train.output_dir={tmp_path}/run",
        f"train.train_iter={ITERATIONS}",
        "train.warmup_iter=2",
        "train.log_period=1",
        "train.global_batch_size=8",
        "train.hang_report.factor=2",
        "train.hang_report.min_seconds=3",
        "model.depth=1",
        "dataloader.train.num_workers=1",
        "graph.enabled=False",
    ]
    with output.open("w") as file:
        job = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: done() >= 6 or job.poll() is not None)
        rank = children(job.pid)[1]
        worker = children(rank)[-1]
        os.kill(worker, signal.SIGSTOP)
        try:
            wait_for(lambda: output.read_text().count("has taken") == 2)
            time.sleep(2)  # a second report would come now
        finally:
            os.kill(worker, signal.SIGCONT)
        assert job.wait(60) == 0, output.read_text()
    finally:
        job.kill()
    text = output.read_text()
    said = re.findall(r"rank (\d): iteration (\d+) has taken \d+ s .* the median is 0\.", text)
    assert sorted(rank for rank, _ in said) == ["0", "1"]
    assert len({iteration for _, iteration in said}) == 1
    assert text.count("thread MainThread:") == 2 and "in _try_get_data" in text
    assert [json.loads(line)["iteration"] for line in metrics.read_text().splitlines()] == list(
        range(1, ITERATIONS + 1)
    )
