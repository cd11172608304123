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
def man():
    return deadlines.Watchman(5)


@pytest.fixture
def tell(man, monkeypatch):
    """Lets a rank say what it does."""

    def say(rank, what, end):
        monkeypatch.setattr(deadlines, "_file", man.files[rank].fileno())
        deadlines.expect(what, end=end)

    return say


def test_late_are_ranks_that_run_and_take_longer_than_they_said(clock, man, tell):
    tell(0, "iteration 7", 30)
    tell(1, "saving with a name that is long" * 20, 60)
    tell(2, "iteration 7", 30)
    tell(3, "a short one", 5)
    tell(3, "", float("inf"))
    ranks = [Runs(), Runs(), Runs(0), Runs(), Runs()]  # the last says nothing
    for second in range(1, 31):
        clock[0] = 1000.0 + second
        assert man.late(ranks) == {}
    clock[0] = 1031.0
    said = "iteration 7 has taken 31 s, more than the 30 s that it may"
    assert man.late(ranks) == {0: said}
    assert man.late(ranks) == {}  # a look every second
    clock[0] = 1032.0
    assert list(man.late(ranks)) == [0]


def test_a_job_that_was_suspended_gets_its_time_again(clock, man, tell):
    tell(0, "iteration 7", 30)
    clock[0] = 9000.0
    assert man.late([Runs()] * 5) == {}
    for second in range(1, 31):
        clock[0] = 9000.0 + second
        assert man.late([Runs()] * 5) == {}
    clock[0] = 9031.0
    assert list(man.late([Runs()] * 5)) == [0]
