"""The launchers' port, attacked by those who reach it and do not know the secret."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time

import pytest
from hostile_peer import ATTACKS, Hostile, replay
from jobs import wait_for

from libai_ext.launch import deadlines, rendezvous
from libai_ext.launch.rendezvous import Peers

SECRET = "known to the launchers alone"


@pytest.fixture
def node(port):
    """Makes launchers of a job of two nodes; they are ended."""
    made = []

    def make(rank, secret=SECRET, count=2, at=None, address="127.0.0.1", attempt=0):
        made.append(Peers(count, rank, address, at or port, attempt, secret))
        return made[-1]

    yield make
    for one in made:
        one.end(0, False)


class Wire:
    """A connection of node 1 to node 0 that somebody else has in hand."""

    def __init__(self, port):
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.spoken = []
        self.change = lambda line: line
        self._target = port
        threading.Thread(target=self._carry, daemon=True).start()

    def _carry(self):
        near = self.server.accept()[0]
        far = socket.create_connection(("127.0.0.1", self._target))
        threading.Thread(target=self._back, args=[far, near], daemon=True).start()
        with contextlib.suppress(OSError):
            for line in near.makefile("rb"):
                self.spoken.append(line)
                far.sendall(self.change(line))

    def _back(self, far, near):
        while chunk := far.recv(1 << 10):
            near.sendall(chunk)


def test_nodes_connect_and_learn_of_each_others_end(node):
    first, second = node(0), node(1)
    wait_for(lambda: second.job is not None)
    assert second.job == first.job and len(first.job) == 16
    second.end(7, True)
    wait_for(lambda: first.failure)
    assert first.failure == rendezvous.PeerFailure(7, "launch: node 1 ended with status 7\n", True)


def test_another_attempt_is_another_job(node):
    numbers = []
    for attempt in range(2):
        first, second = node(0, attempt=attempt), node(1, attempt=attempt)
        wait_for(lambda: second.job is not None)  # noqa: B023 (is over within the turn)
        numbers.append(second.job)
        first.end(1, False)
        wait_for(lambda: second.failure)  # noqa: B023
        second.end(1, False)
    assert numbers[0] != numbers[1]


def test_a_node_comes_through_all_attacks_at_once(node, port):
    first = node(0)
    hostile = Hostile("127.0.0.1", port)
    wait_for(lambda: set(hostile.connections) == {attack.__name__ for attack in ATTACKS})
    wait_for(lambda: hostile.connections.total() > 300)
    assert first.failure is None
    start = time.monotonic()
    second = node(1)
    wait_for(lambda: second.job == first.job)
    assert time.monotonic() - start < 5
    hostile.stop()
    time.sleep(0.5)
    assert first.failure is second.failure is None
    first.end(3, False)
    wait_for(lambda: second.failure)
    assert second.failure.status == 3


def test_a_line_without_an_end_is_not_kept(node, port):
    node(0)
    with socket.create_connection(("127.0.0.1", port)) as connection, pytest.raises(OSError):
        for _ in range(1000):
            connection.sendall(b"a" * (1 << 16))


def test_whoever_says_nothing_is_sent_away_after_a_while(node, port, monkeypatch):
    monkeypatch.setattr(rendezvous, "_HANDSHAKE_SECONDS", 0.3)
    node(0)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        assert connection.recv(100) and connection.recv(100) == b""


def test_only_so_many_may_be_about_to_prove_who_they_are(node, port, monkeypatch):
    monkeypatch.setattr(rendezvous, "_MAX_HANDSHAKES", 3)
    first = node(0)
    held = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(10)]
    closed = [connection for connection in held[:7] if connection.recv(100)]
    assert [connection.recv(100) for connection in closed] == [b""] * len(closed)
    assert len(first._handshakes) == 3


def test_lines_of_an_earlier_job_are_refused(node, port):
    """Node 0 of the second job knows the same secret."""
    first, wire = node(0), Wire(port)
    second = node(1, at=wire.port)
    wait_for(lambda: second.job == first.job)
    second.end(9, True)
    wait_for(lambda: first.failure)
    wait_for(lambda: len(wire.spoken) >= 3)
    first.end(9, True)
    again = node(0)
    for spoken in (wire.spoken, wire.spoken[1:], wire.spoken[:2] + wire.spoken[-1:]):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            with pytest.raises(OSError):
                replay(connection, [*spoken, b"\n", b"\n"])
    assert (again.failure, again._joined) == (None, set())


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line.replace(b"end 0", b"end 1"),
        lambda line: line + line,
        lambda line: b"" if b"alive" in line else line,
        lambda line: line[:5] + line,
    ],
    ids=["changed", "repeated", "left out", "longer"],
)
def test_a_connection_in_strange_hands_is_a_lost_node(node, port, monkeypatch, change):
    """None can make node 0 leave with another status than that for a lost node."""
    monkeypatch.setattr(rendezvous, "HEARTBEAT_SECONDS", 0.1)
    first, wire = node(0), Wire(port)
    second = node(1, at=wire.port)
    wait_for(lambda: second.job == first.job)
    wire.change = change
    time.sleep(0.3)
    second.end(0, True)
    wait_for(lambda: first.failure)
    assert first.failure == rendezvous.PeerFailure(1, "launch: lost node 1\n")


def test_another_secret_is_said_by_both(node, capfd):
    first, second = node(0), node(1, secret="")
    text = "".join(capfd.readouterr().err for _ in range(20) if not time.sleep(0.05))
    said = "launch: {} does not have the secret of {}: JOB_SECRET must be the same\n"
    assert said.format("127.0.0.1", "this job") in text
    assert said.format(f"node 0 (127.0.0.1 port {first.port})", "this node") in text
    assert text.count("\n") == 2
    assert first.failure is second.failure is second.job is None


def test_a_node_ends_while_an_attempt_to_join_fails(node, monkeypatch):
    async def fail(peers):
        asyncio.ensure_future(peers._end(0, False))  # its cancellation and the error meet
        raise ConnectionRefusedError

    monkeypatch.setattr(Peers, "_join", fail)
    second = node(1)
    wait_for(lambda: second._rendezvous.done())
    assert second.failure is second.job is None


def test_what_kept_a_node_away_is_said(node, monkeypatch):
    monkeypatch.setattr(rendezvous, "RENDEZVOUS_SECONDS", 1)
    first, second = node(0, count=3), node(1, count=3)
    wait_for(lambda: second.job)
    twice, nowhere = node(1, count=3), node(1, at=1)
    wait_for(lambda: twice.failure and nowhere.failure and first.failure)
    assert "1 s: no: of 3 nodes, another one is number 1" in twice.failure.text
    assert nowhere.failure.text == "launch: no connection to node 0 (127.0.0.1 port 1) in 1 s\n"
    assert first.failure.text == "launch: nodes [2] have not connected in 1 s\n"


def test_nothing_of_an_attempt_stays(node, port):
    first, second, alone = node(0, count=3), node(1, count=3), node(1, at=1)
    wait_for(lambda: second.job is not None)
    with socket.create_connection(("127.0.0.1", port)):
        wait_for(lambda: first._handshakes)
        for one in (first, second, alone):
            one.end(1, False)
        for one in (first, second, alone):
            one._thread.join(10)
            assert not one._thread.is_alive() and one._loop.is_closed()
            assert (one._open, asyncio.all_tasks(one._loop)) == ({}, set())


def suspend(seconds):
    """For each launcher, how long it stands still; they continue one after the other."""
    for one, length in seconds.items():
        one._loop.call_soon_threadsafe(time.sleep, length)
    time.sleep(max(seconds.values()))


def test_a_job_may_be_suspended_for_longer_than_a_node_may_be_silent(node, monkeypatch):
    monkeypatch.setattr(deadlines, "SUSPENDED_SECONDS", 0.7)
    monkeypatch.setattr(rendezvous, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(rendezvous, "SILENCE_SECONDS", 1.5)
    first, second = node(0), node(1)
    wait_for(lambda: second.job is not None)
    suspend({first: 1.8, second: 2.2})
    time.sleep(0.3)
    assert first.failure is second.failure is None
    suspend({second: 2})
    wait_for(lambda: first.failure)
    assert first.failure.text == "launch: lost node 1\n"


def test_a_job_may_be_suspended_before_its_nodes_have_met(node, monkeypatch):
    monkeypatch.setattr(deadlines, "SUSPENDED_SECONDS", 0.7)
    monkeypatch.setattr(rendezvous, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(rendezvous, "RENDEZVOUS_SECONDS", 1)
    first, second = node(0), node(1, at=1)
    suspend({first: 1.2, second: 1.2})
    time.sleep(0.3)
    assert first.failure is second.failure is None
    wait_for(lambda: first.failure and second.failure)


def test_the_port_is_open_on_the_address_in_use_alone(node, port):
    node(0, address="127.0.0.2")
    socket.create_connection(("127.0.0.2", port)).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
