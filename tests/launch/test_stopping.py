"""Signals to a launcher, and what ends with it; ranks are small programs."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from types import SimpleNamespace

import pytest
from jobs import LAUNCH, alive, wait_for

from libai_ext.launch import launcher, rendezvous
from libai_ext.launch.deadlines import DeadlineMonitor
from libai_ext.launch.options import parse
from libai_ext.launch.stop_signals import REPEAT_SECONDS, STOP_SIGNALS


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_ending_the_launcher_ends_the_job(program, tmp_path, number):
    """Children of the ranks included, but for SIGKILL, which only the ranks hear of."""
    child = "" if number == signal.SIGKILL else "subprocess.Popen(['sleep', '600'])\n"
    path = program(child + "time.sleep(600)\n")
    job = subprocess.Popen([*LAUNCH, "2", path], stderr=subprocess.DEVNULL)
    wait_for(lambda: len(alive(tmp_path)) == 2)
    job.send_signal(number)
    status = job.wait(30)
    assert status == (-number if number == signal.SIGKILL else 128 + number)
    wait_for(lambda: alive(tmp_path) == [])


def test_one_request_in_many_signals(program, tmp_path):
    """The rank notes those that the launcher passes on."""
    path = program(
        "def note(number, frame): print(signal.Signals(number).name, flush=True)\n"
        "for number in (signal.SIGTERM, signal.SIGINT): signal.signal(number, note)\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(600)\n"
    )
    job = subprocess.Popen([*LAUNCH, "1", path], stdout=-1, stderr=-1, text=True)
    assert job.stdout.readline() == "ready\n"
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        job.send_signal(number)
        time.sleep(0.1)
    time.sleep(REPEAT_SECONDS)
    assert job.poll() is None
    job.send_signal(signal.SIGTERM)
    out, said = job.communicate(timeout=20)
    # The first one, and that of the end if there was time to note it.
    assert (job.returncode, set(out.split())) == (128 + signal.SIGTERM, {"SIGTERM"})
    assert said.startswith("launch: SIGTERM: the ranks have to end; send SIGTERM again after 2 s")


def stopped(program, number, handlers):
    """Status and standard error of a job that gets a signal; a handler for each rank."""
    path = program(
        f"sys.path.insert(0, {os.getcwd()!r})\n"
        "from libai_ext.engine import cli as entry\n"
        "def fail(number, frame): raise MemoryError('full')\n"
        f"signal.signal({int(number)}, [{', '.join(handlers)}][rank])\n"
        "def work():\n"
        "    os.write(1, b'ready\\n')\n"
        "    time.sleep(600)\n"
        "entry.run(work)\n"
    )
    command = [*LAUNCH, str(len(handlers)), path]
    job = subprocess.Popen(command, stdout=-1, stderr=-1, text=True)
    try:
        assert [job.stdout.readline() for _ in handlers] == ["ready\n"] * len(handlers)
        job.send_signal(number)
        said = job.communicate(timeout=40)[1]
    finally:
        job.kill()
    return job.returncode, said


@pytest.mark.parametrize(
    "handlers", [["fail"], ["signal.SIG_IGN", "fail"], ["signal.SIG_DFL", "fail"]]
)
def test_a_rank_that_fails_after_a_signal_is_named(program, tmp_path, handlers):
    """Alone, beside one that waits for it, or beside one that the signal has ended."""
    status, said = stopped(program, signal.SIGTERM, handlers)
    failed = f"launch: rank {len(handlers) - 1} ended with exit status 1\n"
    assert (status, said.count(failed)) == (128 + signal.SIGTERM, 1)
    assert said.endswith("\nMemoryError: full\n")
    assert alive(tmp_path) == []


def test_ranks_that_a_signal_has_ended_have_not_failed(program):
    """As Ctrl-C during the start, where one waits for the other and aborts."""
    abort = "lambda number, frame: os.abort()"
    status, said = stopped(program, signal.SIGINT, ["signal.default_int_handler", abort])
    assert status == 128 + signal.SIGINT
    assert said.count("launch: ") == said.count("\n") == 1 and "SIGINT: the ranks have" in said


def test_an_abort_just_before_the_report_that_all_have_finished(monkeypatch):
    states = iter([[None, -signal.SIGABRT], [None, 75], [75, 75]])
    job = launcher.Job(None)
    job.ranks = [None, None]
    monkeypatch.setattr(job, "_states", lambda: next(states))
    assert job._wait() == (75, "")


def test_a_job_may_be_suspended_while_it_saves(monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    job = launcher.Job(None)
    job.deadlines, job.stop_signal = DeadlineMonitor(0), signal.SIGTERM
    steps = iter([9, 9000, *[9] * 100])

    def states():
        clock[0] += next(steps)
        return [None]

    monkeypatch.setattr(job, "_states", states)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert job._wait() == (128 + signal.SIGTERM, "")
    assert 600 < clock[0] - 1000 - 9009 < 610


@pytest.fixture
def lonely(port, monkeypatch):
    """A job of node 1, whose node 0 does not come; it starts no rank."""
    monkeypatch.setattr(launcher, "Rank", None)
    arguments = ["--nnodes", "2", "--node-rank", "1", "--master-port", str(port), "x.py"]
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield launcher.Job(parse(["--nproc-per-node", "2", *arguments], ""))
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_without_a_rendezvous_no_rank_starts(lonely, monkeypatch, capfd):
    monkeypatch.setattr(rendezvous, "RENDEZVOUS_SECONDS", 0)
    assert (lonely.run(), lonely.final) == (1, False)
    assert "launch: no connection to node 0" in capfd.readouterr().err


def test_a_signal_ends_the_wait_for_other_nodes(lonely):
    threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGTERM]).start()
    assert (lonely.run(), lonely.final) == (128 + signal.SIGTERM, True)


def test_a_failed_node_does_not_restart_a_job_that_was_stopped(lonely):
    lonely.final = True
    lonely.peers = SimpleNamespace(failure=rendezvous.PeerFailure(1, "", False))
    assert (lonely._end_with_peer(), lonely.final) == ((1, ""), True)


def test_a_job_under_nohup_outlives_its_terminal(program, tmp_path):
    path = program("time.sleep(600)\n")
    ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731
    job = subprocess.Popen([*LAUNCH, "1", path], stderr=subprocess.DEVNULL, preexec_fn=ignore)
    wait_for(lambda: len(alive(tmp_path)) == 1)
    job.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert (job.poll(), len(alive(tmp_path))) == (None, 1)
    job.send_signal(signal.SIGTERM)
    assert job.wait(20) == 128 + signal.SIGTERM
