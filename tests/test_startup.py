from __future__ import annotations

import socket

import pytest

from libai_ext import startup


@pytest.fixture
def naps(monkeypatch):
    """How often a rank sleeps before it goes on; rank 0 listens after the third time."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(server.getsockname()[1]))
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        taken = []

        def sleep(seconds):
            taken.append(seconds)
            if len(taken) == 3:
                server.listen()

        def count(rank):
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setattr(startup.time, "sleep", sleep)
            startup._wait_for_rank_0()
            return len(taken)

        yield count


def test_ranks_wait_until_the_first_one_listens(naps):
    assert naps(rank=1) == 3


@pytest.mark.parametrize("rank", [0, -1])
def test_the_first_rank_and_a_child_of_a_process_without_ranks_wait_for_none(naps, rank):
    assert naps(rank=rank) == 0


def test_a_first_rank_that_does_not_come_is_left_to_the_engine(naps, monkeypatch):
    monkeypatch.setattr(startup, "_RANK_0_SECONDS", 0)
    assert naps(rank=1) == 0
