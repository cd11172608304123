"""Somebody who reaches a port of a job and does not know its secret.

    python hostile_peer.py ADDRESS PORT

attacks until it is ended, in every way at once, and writes a line for each second: how many
connections were open to it so far, by attack.
"""

from __future__ import annotations

import collections
import itertools
import json
import os
import socket
import sys
import threading
import time


def false_number(connection):
    connection.sendall(b"0 1\n")
    connection.recv(1 << 10)
    time.sleep(1)


def false_end(connection):
    connection.sendall(b"0 1\nend\nend 3 1\n")


def nothing(connection):
    connection.sendall(b"\nend\n\n")
    connection.recv(1 << 10)


def garbage(connection):
    connection.sendall(os.urandom(1 << 10))


def slow_bytes(connection):
    for _ in range(60):
        connection.sendall(b"a")
        time.sleep(0.5)


def no_line(connection):
    for _ in range(1 << 10):
        connection.sendall(b"a" * (1 << 16))


def flood(connection):
    """Connections without a word, as fast as they come and as many as there may be."""
    held = collections.deque([connection], maxlen=200)
    for _ in range(500):
        held.append(socket.create_connection(connection.getpeername(), timeout=5))


def reflection(connection):
    """What was said is said back."""
    while True:
        connection.sendall(connection.recv(1 << 10) or b"\n")


def replay(connection, spoken=(b"0" * 32 + b"\n", b"a" * 64 + b" 0 1\n")):
    """The words of a node in an earlier job."""
    for line in spoken:
        connection.sendall(line)
        connection.recv(1 << 10)


ATTACKS = (
    false_number,
    false_end,
    nothing,
    garbage,
    slow_bytes,
    no_line,
    flood,
    reflection,
    replay,
)


class Hostile:
    """All attacks at once, in threads of this process, until :meth:`stop`."""

    def __init__(self, address: str, port: int, attacks=ATTACKS):
        self.place = address, port
        self.connections = collections.Counter()
        self._over = False
        for attack in attacks:
            threading.Thread(target=self._repeat, args=[attack], daemon=True).start()

    def stop(self) -> None:
        self._over = True

    def _repeat(self, attack) -> None:
        while not self._over:
            try:
                with socket.create_connection(self.place, timeout=5) as connection:
                    self.connections[attack.__name__] += 1
                    attack(connection)
            except OSError:
                time.sleep(0.01)


if __name__ == "__main__":
    hostile = Hostile(sys.argv[1], int(sys.argv[2]))
    for _ in itertools.count():
        print(json.dumps(hostile.connections), flush=True)
        time.sleep(1)
