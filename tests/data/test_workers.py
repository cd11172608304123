"""Data workers that end, are stopped or are signalled: the batches are the same."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import time
from pathlib import Path

import pytest

from libai_ext.data import workers
from libai_ext.data.skip_unreadable import SkipUnreadable
from libai_ext.data.workers import prefetch
from libai_ext.errors import DataError

REQUESTS = 24
# What a worker does at a request, the first time.
DEEDS = {
    3: lambda: os._exit(0),
    6: lambda: os._exit(7),
    8: lambda: os.kill(os.getpid(), signal.SIGKILL),
    9: lambda: os.kill(os.getpid(), signal.SIGKILL),
    11: lambda: os.kill(os.getpid(), signal.SIGSTOP),
    15: lambda: [os.kill(os.getpid(), number) for number in workers.STOP_SIGNALS],
}
HOW = {
    3: "ended with status 0",
    6: "ended with status 7",
    8: "ended by SIGKILL",
    9: "ended by SIGKILL",
    11: "was stopped for",
}


@pytest.mark.parametrize("count", [1, 3])
def test_each_way_to_end_is_named_and_made_good(count, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(workers, "_LOOK_SECONDS", 0.05)

    def make(worker, number, request):
        done = tmp_path / str(request)
        if request in DEEDS and not done.exists():
            done.touch()
            DEEDS[request]()
        return worker, number, request

    start = time.monotonic()
    with caplog.at_level(logging.WARNING, logger="libai_ext"):
        made = list(prefetch(make, range(REQUESTS), count, ahead=2))
    assert made == [(i % count, i // count, i) for i in range(REQUESTS)]
    assert time.monotonic() - start < 4
    for record, (request, how) in zip(caplog.records, HOW.items()):
        assert f"data worker {request % count} (process " in record.getMessage()
        assert how in record.getMessage()
    assert len(caplog.records) == len(HOW) and (tmp_path / "15").exists()


def test_killed_from_outside_at_any_moment(monkeypatch):
    """Also between two requests, and while it answers."""

    def make(worker, number, request):
        return os.getpid(), request, b"x" * 100_000

    made = []
    for pid, request, _ in prefetch(make, range(60), 2, ahead=2):
        made.append(request)
        if request % 5 == 0:
            os.kill(pid, signal.SIGKILL)
    assert made == list(range(60))


def test_a_limit_for_the_same_request(caplog):
    def make(worker, number, request):
        return os._exit(9) if request == 2 else request

    made = prefetch(make, range(9), 2, ahead=2)
    assert [next(made), next(made)] == [0, 1]
    with pytest.raises(RuntimeError, match=r"worker 0 .* 9, like the 3 workers before it: \["):
        next(made)
    assert caplog.text.count("a new worker makes its batches") == 3


def test_errors_come_at_their_place_and_leave_nobody(tmp_path):
    def make(worker, number, request):
        if request == 2:
            raise DataError("mend this")
        if request == 3:
            raise KeyError("lost")
        return os.getpid()

    for bad, error, said in [(2, DataError, "^mend this$"), (3, RuntimeError, "KeyError: 'lost'")]:
        made = prefetch(make, [0, 1, bad, 1], 2, ahead=2)
        pids = [next(made), next(made)]
        with pytest.raises(error, match=said):
            next(made)
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_worker_killed_with_the_lock_of_the_counts_keeps_nobody_waiting():
    class Numbers(list):
        classes = ("a",)

    source = SkipUnreadable(Numbers([(0, 0), (1, 0)]))

    def make(worker, number, request):
        source[0]
        if request == 0 and number == 0 and source.totals()[0] == 1:
            fcntl.lockf(source._totals._lock, fcntl.LOCK_EX)
            os.kill(os.getpid(), signal.SIGKILL)
        return request

    assert list(prefetch(make, range(3), 1, ahead=1)) == [0, 1, 2]
    assert source.totals() == (4, 0)
