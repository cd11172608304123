"""The launchers of a job's nodes hear of each other's end.

The engine may wait for ever for a machine that is gone. Node 0 listens on the port after the
job's; the other launchers connect, and each connection carries a line every few seconds. The last
one is ``end STATUS FINAL``: one that closes without it, or is silent for long, is a lost node.
"""

from __future__ import annotations

import socket
import threading
import time
from typing import NamedTuple

from libai_ext.failure import SAVED_ON_SIGNAL

BEAT_SECONDS = 2
# Silence after which a node is lost; a killed one closes its connection at once.
SILENCE_SECONDS = 20
# What nodes have to come, each attempt.
MEET_SECONDS = 300
_ALIVE = "alive\n"


class Verdict(NamedTuple):
    """Why this node has to end: the status to leave with, what to say, and whether another
    attempt is out of the question."""

    status: int
    text: str
    final: bool = False


class Peers:
    """The connections of one launcher, in one attempt.

    Raises:
        OSError: on node 0, the port is taken.
    """

    def __init__(self, count: int, rank: int, address: str, port: int, attempt: int):
        self.count, self.rank, self.attempt = count, rank, attempt
        self.verdict: Verdict | None = None
        self.ended = False
        self._connections: list[socket.socket] = []
        self._lock = threading.Lock()
        if rank == 0:
            self._listener = socket.create_server(("", port))
            self._listener.settimeout(1)
            self._start(self._accept)
        else:
            self._start(self._connect, address, port)
        self._start(self._beat)

    def end(self, status: int, final: bool) -> None:
        """Tell the others that this node leaves; once."""
        with self._lock:
            if self.ended:
                return
            self.ended = True
        for connection in self._connections:
            self._send(connection, f"end {status} {int(final)}\n")
            try:
                connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass

    def _start(self, work, *arguments) -> None:
        threading.Thread(target=work, args=arguments, daemon=True).start()

    def _accept(self) -> None:
        deadline = time.monotonic() + MEET_SECONDS
        met = set()
        with self._listener:
            while not self.ended and len(met) < self.count - 1:
                if time.monotonic() > deadline:
                    missing = sorted(set(range(1, self.count)) - met)
                    self._decide(1, f"nodes {missing} have not come in {MEET_SECONDS} s")
                    return
                try:
                    connection, _ = self._listener.accept()
                    connection.settimeout(SILENCE_SECONDS)
                    lines = connection.makefile()
                    attempt, rank = map(int, lines.readline().split())
                except (OSError, ValueError):
                    continue
                if attempt != self.attempt or rank in met:  # it tries again
                    connection.close()
                    continue
                met.add(rank)
                self._add(connection, lines, rank)

    def _connect(self, address: str, port: int) -> None:
        deadline = time.monotonic() + MEET_SECONDS
        while not self.ended:
            try:
                connection = socket.create_connection((address, port), timeout=SILENCE_SECONDS)
                connection.sendall(f"{self.attempt} {self.rank}\n".encode())
                lines = connection.makefile()
                if lines.readline() == _ALIVE:
                    self._add(connection, lines, 0)
                    return
                connection.close()
            except (OSError, ValueError):
                pass
            if time.monotonic() > deadline:
                self._decide(1, f"node 0 ({address} port {port}) has not come in {MEET_SECONDS} s")
                return
            time.sleep(0.2)

    def _add(self, connection: socket.socket, lines, rank: int) -> None:
        self._send(connection, _ALIVE)
        self._connections.append(connection)
        self._start(self._listen, lines, rank)

    def _listen(self, lines, rank: int) -> None:
        try:
            for line in lines:
                words = line.split()
                if words[:1] == ["end"]:
                    status, final = int(words[1]), words[2] == "1"
                    if status not in (0, SAVED_ON_SIGNAL):
                        self._decide(status, f"node {rank} ended with status {status}", final)
                    return
        except (OSError, ValueError):
            pass
        self._decide(1, f"lost node {rank}")

    def _decide(self, status: int, text: str, final: bool = False) -> None:
        with self._lock:
            if self.verdict is None and not self.ended:
                self.verdict = Verdict(status, f"launch: {text}\n", final)

    def _beat(self) -> None:
        while not self.ended:
            for connection in self._connections:
                self._send(connection, _ALIVE)
            time.sleep(BEAT_SECONDS)

    def _send(self, connection: socket.socket, line: str) -> None:
        try:
            connection.sendall(line.encode())
        except OSError:  # the listening side finds out
            pass
