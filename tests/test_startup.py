from __future__ import annotations

import socket
import threading
import time

import pytest

from libai_ext import startup


@pytest.fixture
def seconds(monkeypatch):
    """How long a rank waits for the first one, who listens after half a second."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(server.getsockname()[1]))
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("WORLD_SIZE", "2")

        def wait(rank):
            monkeypatch.setenv("RANK", str(rank))
            timer = threading.Timer(0.5, server.listen)
            timer.start()
            begin = time.monotonic()
            startup._wait_for_first_rank()
            elapsed = time.monotonic() - begin
            timer.join()
            return elapsed

        yield wait


def test_ranks_wait_until_the_first_one_listens(seconds):
    assert 0.5 <= seconds(rank=1) < startup._FIRST_RANK_SECONDS


def test_the_first_rank_waits_for_none(seconds):
    assert seconds(rank=0) < 0.5


def test_a_first_rank_that_does_not_come_is_left_to_the_engine(seconds, monkeypatch):
    monkeypatch.setattr(startup, "_FIRST_RANK_SECONDS", 0.1)
    assert seconds(rank=1) < 0.5
