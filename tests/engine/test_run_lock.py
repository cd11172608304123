"""The lock of an output folder, between real processes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from omegaconf import DictConfig

from libai_ext.engine import cli as entry
from libai_ext.engine import run_lock
from libai_ext.engine.output_dir import prepare_output_dir
from libai_ext.engine.run_lock import RunLock
from libai_ext.errors import ConfigError

BEAT, STALE = 0.1, 1.0
PROGRAM = f"""
import sys
from libai_ext.engine import run_lock
run_lock.HEARTBEAT_SECONDS, run_lock.STALE_SECONDS = {BEAT}, {STALE}
if sys.argv[2] == "without":
    def refuse(*arguments):
        raise OSError(38, "Function not implemented")
    run_lock.fcntl.lockf = refuse
with run_lock.RunLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(run_lock, "HEARTBEAT_SECONDS", BEAT)
    monkeypatch.setattr(run_lock, "STALE_SECONDS", STALE)


@pytest.fixture
def other(tmp_path):
    """Starts another process that holds the lock of ``tmp_path``."""
    started = []

    def start(kernel_lock=True):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path), "with" if kernel_lock else "without"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def no_kernel_locks(monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "lockf", refuse)


def state(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def seconds_to_take(folder):
    start = time.monotonic()
    RunLock(folder).release()
    return time.monotonic() - start


@pytest.mark.parametrize("how", [{}, {"resume": True}, {"start_over": True}])
def test_a_second_run_is_refused_and_changes_nothing(tmp_path, other, how, capsys):
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 10}\n')
    process = other()
    before = state(tmp_path)
    cfg = DictConfig({"train": {"output_dir": str(tmp_path)}})
    with pytest.raises(ConfigError) as caught:
        with prepare_output_dir(cfg, **how):
            raise AssertionError
    assert entry._report(caught.value) == 2
    message = capsys.readouterr().err
    assert re.search(rf"in use by the run of process {process.pid} on host '.+', start", message)
    assert message.count("error:") == 1
    assert state(tmp_path) == before
    assert process.communicate("")[1] == ""
    assert process.returncode == 0
    assert not (tmp_path / "run.lock").exists()


def test_a_launched_run_is_refused(tmp_path, launch):
    with RunLock(tmp_path):
        options = ["--resume", f"train.output_dir={tmp_path}"]
        out = launch.train("projects/MAE/configs/mae_digits.py", 1, *options, status=2)
        assert [path.name for path in tmp_path.iterdir()] == ["run.lock"]
    assert out.startswith(f"error: train.output_dir {tmp_path} is in use by the run of process ")


def test_a_killed_holder_is_followed_at_once(tmp_path, other):
    process = other()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / "run.lock").exists()
    assert seconds_to_take(tmp_path) < 0.5


def test_a_data_worker_that_outlives_its_rank_does_not_hold_it(tmp_path):
    program = PROGRAM.replace("    sys.stdin", "    import os; os.fork()\n    sys.stdin")
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path), "with"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout.readline() == b"held\n"
    children = f"/proc/{process.pid}/task/{process.pid}/children"
    while not open(children).read():
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert seconds_to_take(tmp_path) < 0.5
    os.killpg(process.pid, signal.SIGKILL)  # fails where it did not outlive
    process.stdin.close()


def test_without_kernel_locks_a_beat_refuses(tmp_path, other, no_kernel_locks):
    other(kernel_lock=False)
    start = time.monotonic()
    with pytest.raises(ConfigError, match="is in use"):
        RunLock(tmp_path)
    assert time.monotonic() - start < STALE


def test_without_kernel_locks_silence_frees(tmp_path, other, no_kernel_locks, caplog):
    process = other(kernel_lock=False)
    process.kill()
    process.wait()
    assert STALE - 2 * BEAT < seconds_to_take(tmp_path) < 2 * STALE
    assert f"the run of process {process.pid} on host" in caplog.text
    assert "may still run; waiting up to 1 s" in caplog.text


def test_another_machine_or_boot(tmp_path):
    """Its kernel's lock cannot be seen: its beats count, by the time that the file has."""
    lock = RunLock(tmp_path)
    elsewhere = dict(lock.holder, boot="another")
    lock.release()
    path = tmp_path / "run.lock"
    for age, least in ((0, STALE - 2 * BEAT), (3600, 2 * BEAT), (-3600, STALE)):
        path.write_text(json.dumps(elsewhere).ljust(512))
        os.utime(path, (time.time() - age,) * 2)
        assert least <= seconds_to_take(tmp_path) < least + 1


def test_who_stood_still_finds_another_and_leaves(tmp_path, other, no_kernel_locks):
    process = other(kernel_lock=False)
    process.send_signal(signal.SIGSTOP)
    with RunLock(tmp_path):
        process.send_signal(signal.SIGCONT)
        # Its input stays open: at the end of that it would leave by itself.
        assert process.wait(timeout=10) == 2
        said = process.stderr.read()
        assert f"{tmp_path} was taken over by the run of process {os.getpid()} on host" in said
        with pytest.raises(ConfigError, match="is in use"):
            RunLock(tmp_path)


def test_removed_in_mid_run_it_is_made_again(tmp_path, caplog):
    folder = tmp_path / "run"
    folder.mkdir()
    with RunLock(folder) as lock:
        shutil.rmtree(folder)
        deadline = time.monotonic() + 5
        while "made again" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.05)
        assert json.loads((folder / "run.lock").read_text()) == lock.holder
    assert not (folder / "run.lock").exists()


def test_what_a_crash_left_of_it(tmp_path):
    for content in (b"", bytes(512)):
        (tmp_path / "run.lock").write_bytes(content)
        assert seconds_to_take(tmp_path) < 0.5


def test_a_file_of_somebody_elses(tmp_path):
    (tmp_path / "run.lock").write_text("mine")
    with pytest.raises(ConfigError, match="run.lock is not the lock of a run"):
        RunLock(tmp_path)
    (tmp_path / "run.lock").rename(tmp_path / "notes")
    (tmp_path / "run.lock").symlink_to(tmp_path / "notes")
    with pytest.raises(OSError, match="symbolic links"):
        RunLock(tmp_path)
    assert (tmp_path / "notes").read_text() == "mine"


def beats(monkeypatch, *outcomes):
    """An event: the heartbeats have had these outcomes, an error or None each."""
    done, left = threading.Event(), list(outcomes)

    def beat(*arguments):
        outcome = left.pop(0) if left else done.set()
        if outcome is not None:
            raise outcome

    monkeypatch.setattr(os, "utime", beat)
    return done


def test_a_disk_that_is_read_only_now_is_told_once(tmp_path, monkeypatch, caplog):
    refused = OSError(errno.EROFS, "Read-only file system")
    done = beats(monkeypatch, refused, refused, None, refused, refused)
    with RunLock(tmp_path):
        assert done.wait(10)
    assert caplog.messages == [f"{tmp_path}/run.lock: Read-only file system"] * 2


def test_a_lock_that_cannot_be_removed_does_not_replace_the_runs_end(small_disk, caplog):
    folder = small_disk.folder
    lock = RunLock(folder)
    # Of the same files. The kernel makes no mount read-only while one of its files is open.
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
    try:
        with pytest.raises(SystemExit) as caught, lock:
            raise SystemExit(75)
    finally:
        subprocess.run(["umount", folder], check=True)
    assert (caught.value.code, caught.value.__context__) == (75, None)
    assert caplog.messages == [f"{folder}/run.lock cannot be removed: Read-only file system"]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(lock._file)


def test_another_holder_that_has_ended_by_now_ends_the_run_too(tmp_path, monkeypatch, capsys):
    """Its file has gone between two looks."""
    left = []
    monkeypatch.setattr(os, "_exit", left.append)
    done = beats(monkeypatch, ConfigError("in use"))
    with RunLock(tmp_path) as lock:
        lock.path.rename(tmp_path / "away")
        monkeypatch.setattr(lock, "_is_mine", lambda: True)
        assert done.wait(10)
    assert left == [2] and "was taken over by an unknown run" in capsys.readouterr().err
