"""Signals to a real run: a checkpoint of the iteration, status 75, and the same curve after it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import termios
import time
from pathlib import Path

import pytest

from libai_ext.launch.stop_signals import REPEAT_SECONDS

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

    def start(processes, *options, launcher=(), **popen):
        job = subprocess.Popen(
            command(tmp_path / "run", digits, processes, *options, launcher=launcher),
            cwd=ROOT,
            text=True,
            **(popen or dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT)),
        )
        started.append(job)
        wait_for(lambda: len(lines(tmp_path / "run")) >= 3 or job.poll() is not None)
        return job

    yield start
    for job in started:
        job.kill()


def signal_to(job, to, number):
    """``to``: one of the ranks, or the launcher, or as a cluster does the ranks and a moment later
    the launcher, more than once."""
    ranks = ranks_of(job.pid)
    if to == "rank 1":
        os.kill(ranks[1], number)
    for _ in range(2 if to == "all" else 0):
        for pid in ranks:
            os.kill(pid, number)
        time.sleep(0.1)
        job.send_signal(number)
    if to == "launcher":
        job.send_signal(number)


@pytest.mark.parametrize(
    "processes, mode, number, to",
    [
        (2, "graph", signal.SIGTERM, "all"),
        (2, "eager", signal.SIGUSR1, "rank 1"),
        (1, "graph", signal.SIGINT, "launcher"),
    ],
)
def test_a_signal_saves_and_a_resume_goes_on(
    run, launch, digits, tmp_path, processes, mode, number, to
):
    iterations = ITERATIONS // processes
    options = [f"graph.enabled={mode == 'graph'}", f"train.train_iter={iterations}"]
    job = run(processes, *options)
    before = time.monotonic()
    signal_to(job, to, number)
    out = job.communicate(timeout=60)[0]
    assert (job.returncode, time.monotonic() - before < 30) == (75, True), out
    assert "Traceback" not in out
    saved(tmp_path / "run", iterations)
    launch(*command(tmp_path / "run", digits, processes, "--resume", *options))
    assert [line["iteration"] for line in lines(tmp_path / "run")] == [*range(1, iterations + 1)]


def saved(folder, iterations):
    done = len(lines(folder))
    assert done < iterations
    assert f"ended by a signal after {done} iterations" in (folder / "log.txt").read_text()
    assert (folder / "last_checkpoint").read_text().startswith(f"model_{done - 1:07d}")


def test_a_terminal_that_is_closed_saves(run, tmp_path):
    """Standard output and error are gone with it."""
    ours, theirs = os.openpty()

    def lead():
        os.setsid()
        fcntl.ioctl(1, termios.TIOCSCTTY)

    job = run(1, "graph.enabled=False", stdout=theirs, stderr=theirs, preexec_fn=lead)
    os.close(theirs)
    os.close(ours)
    assert job.wait(60) == 75
    saved(tmp_path / "run", ITERATIONS)


def test_the_same_signal_after_a_moment_leaves_at_once(run, tmp_path):
    """The ranks are stopped, so that they cannot save."""
    job = run(2)
    ranks = ranks_of(job.pid)
    for pid in ranks:
        os.kill(pid, signal.SIGSTOP)
    job.send_signal(signal.SIGTERM)
    time.sleep(REPEAT_SECONDS + 0.2)
    job.send_signal(signal.SIGINT)
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
