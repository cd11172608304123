"""The launchers of a job's nodes hear of each other's end.

The engine may wait for ever for a machine that is gone. Node 0 listens on the port after the
job's until all have come; the other launchers connect, and each connection carries a line every
few seconds, signed with the job's secret. The last one is ``end STATUS FINAL``: one that closes
without it, or is silent for long, is a lost node.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import socket
import sys
import threading
import time
from typing import NamedTuple

from libai_ext.launch import ports, signed_lines
from libai_ext.launch.exit_report import SAVED_ON_SIGNAL

BEAT_SECONDS = 2
# Silence after which a node is lost; a killed one closes its connection at once.
SILENCE_SECONDS = 20
# What nodes have to come, each attempt.
MEET_SECONDS = 300
# What a connection has to prove that it is of this job, and how many may be about to: one more
# ends the oldest.
_GREETING_SECONDS = 10
_MOST_GREETINGS = 64
# Of the environment: what the launchers of a job know, and nobody else.
SECRET = "JOB_SECRET"
_ALIVE = "alive"
# What a connection can fail of.
_FAILURES = (OSError, ValueError, asyncio.TimeoutError)


class Verdict(NamedTuple):
    """Why this node has to end: the status to leave with, what to say, and whether another
    attempt is out of the question."""

    status: int
    text: str
    final: bool = False


class Peers:
    """The connections of one launcher, in one attempt.

    Args:
        address, port: where node 0 listens.
        secret: what the launchers of the job know, and nobody else.

    Raises:
        OSError: on node 0, the port is taken.
    """

    def __init__(self, count: int, rank: int, address: str, port: int, attempt: int, secret: str):
        self.count, self.rank, self.attempt, self.secret = count, rank, attempt, secret
        self.address, self.port = address, port
        # The number of this attempt, by node 0; None until this node has met it.
        self.job = secrets.token_hex(8) if rank == 0 else None
        self.verdict: Verdict | None = None
        self.ended = False
        self._met: set[int] = set()
        self._open: dict[int, signed_lines.Lines] = {}
        self._greetings: list[asyncio.Task] = []
        self._doubted = False
        listener = ports.listen(address, port) if rank == 0 else None
        self._loop = asyncio.new_event_loop()
        self._meeting = self._loop.create_task(
            self._connect() if listener is None else self._accept(listener)
        )
        self._beating = self._loop.create_task(self._beat())
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def end(self, status: int, final: bool) -> None:
        """Tell the others that this node leaves; once."""
        asyncio.run_coroutine_threadsafe(self._end(status, final), self._loop).result()

    async def _end(self, status: int, final: bool) -> None:
        if self.ended:
            return
        self.ended = True
        self._meeting.cancel()
        await asyncio.wait([self._meeting])
        for lines in self._open.values():
            lines.send(f"end {status} {int(final)}")
            with contextlib.suppress(OSError):  # the other side is gone
                lines.writer.write_eof()

    async def _accept(self, listener: socket.socket) -> None:
        deadline = time.monotonic() + MEET_SECONDS
        server = await asyncio.start_server(self._greet, sock=listener, limit=signed_lines.LONGEST)
        try:
            while len(self._met) < self.count - 1:
                if time.monotonic() > deadline:
                    missing = sorted(set(range(1, self.count)) - self._met)
                    self._decide(1, f"nodes {missing} have not come in {MEET_SECONDS} s")
                    return
                await asyncio.sleep(0.05)
        finally:
            server.close()
            for task in self._greetings:
                task.cancel()

    async def _greet(self, reader, writer) -> None:
        """A connection to node 0, whoever it is."""
        task = asyncio.current_task()
        assert task is not None
        self._greetings.append(task)
        if len(self._greetings) > _MOST_GREETINGS:
            self._greetings.pop(0).cancel()
        rank = None
        try:
            rank = await asyncio.wait_for(self._admit(reader, writer), _GREETING_SECONDS)
        except ValueError:
            self._doubt(f"{writer.get_extra_info('peername')[0]} has not the secret of this job")
        except (OSError, asyncio.TimeoutError):
            pass
        finally:
            if task in self._greetings:
                self._greetings.remove(task)
            if rank is None:
                writer.transport.abort()
        if rank is not None:
            await self._listen(rank)

    async def _admit(self, reader, writer) -> int | None:
        """Number of the node that has come, None for one that is to try again."""
        lines = await signed_lines.greet(reader, writer, self.secret, listening=True)
        attempt, rank = map(int, (await lines.receive()).split())
        if attempt != self.attempt:
            lines.send(f"no: attempt {self.attempt} is on")
        elif rank in self._met or not 0 < rank < self.count:
            lines.send(f"no: of {self.count} nodes, another one is number {rank}")
        else:
            lines.send(f"job {self.job}")
            self._meet(rank, lines)
            return rank
        return None

    async def _connect(self) -> None:
        deadline = time.monotonic() + MEET_SECONDS
        answer = ""
        while self.job is None:
            try:
                await asyncio.wait_for(self._join(), _GREETING_SECONDS)
            except _FAILURES as error:
                if isinstance(error, ValueError):  # it is there
                    answer = f": {error}"
                if time.monotonic() > deadline:
                    self._decide(1, f"{self._first()} has not come in {MEET_SECONDS} s{answer}")
                    return
                await asyncio.sleep(0.2)
        self._listening = self._loop.create_task(self._listen(0))

    async def _join(self) -> None:
        """
        Raises:
            OSError, ValueError: node 0 is not there, or does not want this node now.
        """
        reader, writer = await asyncio.open_connection(
            self.address, self.port, family=socket.AF_INET, limit=signed_lines.LONGEST
        )
        try:
            lines = await signed_lines.greet(reader, writer, self.secret, listening=False)
            lines.send(f"{self.attempt} {self.rank}")
            try:
                answer = await lines.receive()
            except (ConnectionError, ValueError):
                self._doubt(f"{self._first()} has not the secret of this node")
                raise
            if not answer.startswith("job "):
                raise ValueError(answer)
            self._meet(0, lines)
            self.job = answer[len("job ") :]
        finally:
            if self.job is None:
                writer.transport.abort()

    def _first(self) -> str:
        return f"node 0 ({self.address} port {self.port})"

    def _doubt(self, text: str) -> None:
        """Say so; once, for who else comes to the port is no business of this job."""
        if not self._doubted:
            self._doubted = True
            print(f"launch: {text}: {SECRET} must be the same", file=sys.stderr, flush=True)

    def _meet(self, rank: int, lines: signed_lines.Lines) -> None:
        self._met.add(rank)
        self._open[rank] = lines

    async def _listen(self, rank: int) -> None:
        lines = self._open[rank]
        try:
            while True:
                line = await asyncio.wait_for(lines.receive(), SILENCE_SECONDS)
                if line != _ALIVE:
                    status, final = _end(line)
                    if status not in (0, SAVED_ON_SIGNAL):
                        self._decide(status, f"node {rank} ended with status {status}", final)
                    return
        except _FAILURES:
            self._decide(1, f"lost node {rank}")
        finally:
            del self._open[rank]
            lines.writer.close()

    def _decide(self, status: int, text: str, final: bool = False) -> None:
        if self.verdict is None and not self.ended:
            self.verdict = Verdict(status, f"launch: {text}\n", final)

    async def _beat(self) -> None:
        while not self.ended:
            for lines in self._open.values():
                lines.send(_ALIVE)
            await asyncio.sleep(BEAT_SECONDS)


def _end(line: str) -> tuple[int, bool]:
    """Status and FINAL of the line that a node leaves with.

    Raises:
        ValueError: it is another line.
    """
    words = re.fullmatch("end ([0-9]{1,3}) ([01])", line)
    if words is None or int(words[1]) > 255:
        raise ValueError(f"not a line of a launcher: {line!r}")
    return int(words[1]), words[2] == "1"
