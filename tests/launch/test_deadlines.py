from __future__ import annotations

import pytest

from libai_ext.launch import deadlines


class Runs:
    def __init__(self, status=None):
        self.status = status

    def poll(self):
        return self.status


@pytest.fixture
def clock(monkeypatch):
    """Of this machine, in seconds, to be set."""
    now = [1000.0]
    monkeypatch.setattr(deadlines.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def monitor():
    return deadlines.DeadlineMonitor(5)


@pytest.fixture
def begin(monitor, monkeypatch):
    """Lets a rank begin a task."""

    def write(rank, what, end):
        monkeypatch.setattr(deadlines, "_file", monitor.files[rank].fileno())
        deadlines.begin(what, end=end)

    return write


def test_overdue_are_ranks_that_run_past_their_deadline(clock, monitor, begin):
    begin(0, "iteration 7", 30)
    begin(1, "saving with a name that is long" * 20, 60)
    begin(2, "iteration 7", 30)
    begin(3, "a short one", 5)
    begin(3, "", float("inf"))
    ranks = [Runs(), Runs(), Runs(0), Runs(), Runs()]  # the last has no task
    for second in range(1, 31):
        clock[0] = 1000.0 + second
        assert monitor.overdue(ranks) == {}
    clock[0] = 1031.0
    said = "iteration 7 has taken 31 s, the limit is 30 s"
    assert monitor.overdue(ranks) == {0: said}
    assert monitor.overdue(ranks) == {}  # it checks every second
    clock[0] = 1032.0
    assert list(monitor.overdue(ranks)) == [0]


def test_a_job_that_was_suspended_gets_its_time_again(clock, monitor, begin):
    begin(0, "iteration 7", 30)
    clock[0] = 9000.0
    assert monitor.overdue([Runs()] * 5) == {}
    for second in range(1, 31):
        clock[0] = 9000.0 + second
        assert monitor.overdue([Runs()] * 5) == {}
    clock[0] = 9031.0
    assert list(monitor.overdue([Runs()] * 5)) == [0]
