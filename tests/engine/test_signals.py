"""Signals to a real run: a checkpoint of the iteration, status 75, and the same curve after it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # real launches

ROOT = Path(__file__).resolve().parents[2]
DIGITS = "projects/MAE/configs/mae_digits.py"
ITERATIONS = 120


def command(folder, digits, processes, *options, launcher=()):
    return [
        *("bash", "tools/train.sh", *launcher, "projects/MAE/train_net.py", DIGITS, str(processes)),
        f"data.train=[{digits}/train]",
        f"train.output_dir={folder}",
        f"train.train_iter={ITERATIONS}",
        "train.log_period=1",
        "train.global_batch_size=8",
        "model.depth=1",
        "dataloader.train.num_workers=1",
        *options,
    ]


def lines(folder):
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


def ranks_of(launcher):
    text = Path(f"/proc/{launcher}/task/{launcher}/children").read_text()
    return [int(pid) for pid in text.split()]


@pytest.fixture
def run(tmp_path, digits):
    """Starts a run and waits until it is under way."""
    started = []

    def start(processes, *options, launcher=()):
        job = subprocess.Popen(
            command(tmp_path / "run", digits, processes, *options, launcher=launcher),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(job)
        wait_for(lambda: len(lines(tmp_path / "run")) >= 3 or job.poll() is not None)
        return job

    yield start
    for job in started:
        job.kill()


@pytest.mark.parametrize(
    "processes, mode, number, to",
    [
        (1, "eager", signal.SIGTERM, "launcher"),
        (2, "graph", signal.SIGTERM, "launcher"),
        (2, "eager", signal.SIGUSR1, "rank 1"),
        (1, "graph", signal.SIGINT, "launcher"),
    ],
)
def test_a_signal_saves_and_a_resume_goes_on(
    run, launch, digits, tmp_path, processes, mode, number, to
):
    folder = tmp_path / "run"
    iterations = ITERATIONS // processes
    options = [f"graph.enabled={mode == 'graph'}", f"train.train_iter={iterations}"]
    job = run(processes, *options)
    before = time.monotonic()
    os.kill(ranks_of(job.pid)[1] if to == "rank 1" else job.pid, number)
    out = job.communicate(timeout=60)[0]
    assert (job.returncode, time.monotonic() - before < 30) == (75, True), out
    assert "Traceback" not in out

    done = len(lines(folder))
    assert done < iterations
    assert f"ended by a signal after {done} iterations" in out
    name = f"model_{done - 1:07d}"
    assert (folder / "last_checkpoint").read_text().startswith(name)

    launch(*command(folder, digits, processes, "--resume", *options))
    assert [line["iteration"] for line in lines(folder)] == list(range(1, iterations + 1))


def test_a_second_signal_leaves_at_once(run, tmp_path):
    """The ranks are stopped, so that they cannot save."""
    job = run(2)
    ranks = ranks_of(job.pid)
    for pid in ranks:
        os.kill(pid, signal.SIGSTOP)
    job.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert job.poll() is None
    job.send_signal(signal.SIGTERM)
    assert job.wait(10) == 128 + signal.SIGTERM
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    assert not (tmp_path / "run/last_checkpoint").exists()


def test_without_the_key_a_signal_ends_the_run(run, tmp_path):
    job = run(1, "train.save_on_signal=False")
    job.send_signal(signal.SIGTERM)
    assert job.wait(30) == 128 + signal.SIGTERM
    assert not (tmp_path / "run/last_checkpoint").exists()


@pytest.mark.slow
def test_a_crash_is_followed_by_a_restart(run, digits, tmp_path):
    """From the last checkpoint if there is one, else from the start."""
    folder = tmp_path / "run"
    options = "train.checkpointer.period=30", "train.train_iter=60"
    job = run(2, *options, launcher=("--restarts", "2"))
    os.kill(ranks_of(job.pid)[0], signal.SIGKILL)
    wait_for(lambda: (folder / "model_0000029").exists())
    first = ranks_of(job.pid)
    os.kill(first[1], signal.SIGKILL)
    out = job.communicate(timeout=120)[0]
    assert job.returncode == 0, out
    assert "launch: restart 1 of 2" in out and "launch: restart 2 of 2" in out
    assert [line["iteration"] for line in lines(folder)] == list(range(1, 61))
    assert "model_0000029" in out.split("restart 2 of 2")[1]
