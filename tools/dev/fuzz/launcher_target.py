"""The launchers' lines, without sockets.

The first byte of an input says who sends the rest: a stranger to node 0, whose bytes are sent
unchanged; a launcher to node 0, which knows the secret and signs each line; or a stranger who
pretends to node 1 to be node 0.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Iterator
from unittest import mock

from guard import Target, expect

from libai_ext.launch import rendezvous, signed_lines

SECRET = "of the job"
NODES = 3
# The senders.
STRANGER, LAUNCHER, NO_NODE_0 = range(3)


class _Writer:
    """Stores the sent bytes."""

    def __init__(self) -> None:
        self.sent = b""
        self.transport = self
        self.closed = False

    def write(self, data: bytes) -> None:
        self.sent += data

    def close(self) -> None:
        self.closed = True

    abort = close


class _Node(rendezvous.Peers):
    """A node without socket, thread and heartbeats."""

    def __init__(self, rank: int) -> None:
        self.count, self.rank, self.attempt, self.secret = NODES, rank, 0, SECRET
        self.address, self.port = "127.0.0.1", 1
        self.job, self.failure, self.ended = "7" if rank == 0 else None, None, False
        self._joined: set[int] = set()
        self._open: dict[int, signed_lines.Lines] = {}
        self._warned = True  # do not print the warning
        self._running = rendezvous.RunningSince()


_loop = asyncio.new_event_loop()


async def _receive(data: bytes, chunk: int) -> tuple[Any, ...]:
    """The result of a connection whose bytes arrive in pieces of ``chunk``."""
    sender = data[0] % 3 if data else STRANGER
    node, writer = _Node(rank=int(sender == NO_NODE_0)), _Writer()
    reader = asyncio.StreamReader(limit=signed_lines.LONGEST)
    with mock.patch.object(asyncio, "open_connection", _connected(reader, writer)):
        meeting: Any = node._join() if node.rank else node._admit(reader, writer)
        meeting = asyncio.ensure_future(meeting)
        await asyncio.sleep(0)
        content = data[1:] if sender != LAUNCHER else await _signed(data[1:], writer.sent)
        for start in range(0, len(content), chunk):
            reader.feed_data(content[start : start + chunk])
            await asyncio.sleep(0)
        reader.feed_eof()
        try:
            rank = await meeting
        except rendezvous._CONNECTION_ERRORS as error:
            return type(error).__name__, node.failure
    expect(sender == LAUNCHER, "a stranger is let in")
    if rank is not None:
        await node._listen(rank)
        expect(not node._open and writer.closed, "the connection is not closed")
        expect(node.failure is None or 0 < node.failure.status < 256, f"{node.failure}")
    return rank, node.failure


def _connected(*streams: Any) -> Any:
    async def connect(*place: Any, **options: Any) -> Any:
        return streams

    return connect


async def _signed(content: bytes, challenge: bytes) -> bytes:
    """The lines of a launcher that has received the challenge."""
    reader, writer = asyncio.StreamReader(), _Writer()
    reader.feed_data(challenge)
    lines = await signed_lines.handshake(reader, writer, SECRET, listening=False)
    for line in content.split(b"\n"):
        lines.send(line.decode("utf-8", "replace"))
    return writer.sent


def _read(path: Path) -> tuple[Any, ...]:
    return _loop.run_until_complete(_receive(path.read_bytes(), 1 << 20))


def _compare(path: Path, result: tuple[Any, ...]) -> None:
    again = _loop.run_until_complete(_receive(path.read_bytes(), 7))
    expect(again == result, f"{result}, but {again} if the bytes arrive by seven")


def _seeds(folder: Path) -> Iterator[bytes]:
    yield b"\0" + b"0" * 32 + b"\n" + b"f" * 64 + b" 0 1\n"
    yield b"\2" + b"0" * 32 + b"\n" + b"f" * 64 + b" job 7\n"
    for text in (b"0 1\nalive\nalive\nend 0 0", b"0 2\nalive\nend 1 1", b"1 1", b"0 2\nend 75 0\n"):
        yield b"\1" + text


LINES = Target(
    name="lines",
    seeds=_seeds,
    read=_read,
    errors=(),
    compare=_compare,
    words=(
        b"alive", b"end ", b"end 0 0", b"job ", b"no: ", b"\n", b"0 1", b"-1", b" 1", b"\xff",
        b"\xe2\x80\xa8", b"\0",
    ),
)  # fmt: skip

TARGETS = (LINES,)
