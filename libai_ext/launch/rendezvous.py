"""Rendezvous of the launchers of a job's nodes: each one learns how the others end.

The engine can wait forever for a lost machine. Node 0 listens on the port after the job's until
all other launchers have connected. Each connection carries a heartbeat every few seconds, signed
with the job's secret. The last line is ``end STATUS FINAL``. A node is lost if its connection
closes without that line, or is silent for too long. Time in which this launcher was suspended, as
a cluster suspends a job, does not count.
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
from libai_ext.launch.deadlines import RunningSince
from libai_ext.launch.exit_report import SAVED_ON_SIGNAL

HEARTBEAT_SECONDS = 2
# A node is lost after so long a silence; a killed one closes its connection at once.
SILENCE_SECONDS = 20
# For all nodes to connect, in each attempt.
RENDEZVOUS_SECONDS = 300
# For a connection to prove that it is of this job. One more than the maximum closes the oldest.
_HANDSHAKE_SECONDS = 10
_MAX_HANDSHAKES = 64
# Environment variable: the launchers of a job know it, nobody else does.
SECRET = "JOB_SECRET"
_ALIVE = "alive"
_CONNECTION_ERRORS = (OSError, ValueError, asyncio.TimeoutError)


class PeerFailure(NamedTuple):
    """Why this node has to end: exit status, message, and whether a restart is forbidden."""

    status: int
    text: str
    final: bool = False


class Peers:
    """The connections of one launcher, in one attempt.

    Args:
        address, port: node 0 listens there.
        secret: see ``SECRET``.

    Attributes:
        job: the number of this attempt, chosen by node 0; None before this node has joined.
        failure: None while all is well.

    Raises:
        OSError: on node 0, the port is taken.
    """

    def __init__(self, count: int, rank: int, address: str, port: int, attempt: int, secret: str):
        self.count, self.rank, self.attempt, self.secret = count, rank, attempt, secret
        self.address, self.port = address, port
        self.job = secrets.token_hex(8) if rank == 0 else None
        self.failure: PeerFailure | None = None
        self.ended = False
        self._joined: set[int] = set()
        self._open: dict[int, signed_lines.Lines] = {}
        self._handshakes: list[asyncio.Task] = []
        self._warned = False
        self._running = RunningSince()
        listener = ports.listen(address, port) if rank == 0 else None
        self._loop = asyncio.new_event_loop()
        self._rendezvous = self._loop.create_task(
            self._connect() if listener is None else self._accept(listener)
        )
        self._heartbeats = self._loop.create_task(self._send_heartbeats())
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.close()

    def end(self, status: int, final: bool) -> None:
        """Report the end of this node to the others; only the first call counts."""
        if not self.ended:
            asyncio.run_coroutine_threadsafe(self._end(status, final), self._loop).result()

    async def _end(self, status: int, final: bool) -> None:
        if self.ended:
            return
        self.ended = True
        self._rendezvous.cancel()
        await asyncio.wait([self._rendezvous])
        for lines in self._open.values():
            lines.send(f"end {status} {int(final)}")
            with contextlib.suppress(OSError):  # the other side is gone
                lines.writer.write_eof()
        self._stopping = self._loop.create_task(self._stop())

    async def _stop(self) -> None:
        """End the thread when the other nodes have closed their connections."""
        start = time.monotonic()
        while self._open and self._left(start, SILENCE_SECONDS) > 0:
            await asyncio.sleep(0.1)
        rest = asyncio.all_tasks() - {self._stopping}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        self._loop.stop()

    async def _accept(self, listener: socket.socket) -> None:
        start = time.monotonic()
        server = await asyncio.start_server(self._handle, sock=listener, limit=signed_lines.LONGEST)
        try:
            while len(self._joined) < self.count - 1:
                if self._left(start, RENDEZVOUS_SECONDS) <= 0:
                    missing = sorted(set(range(1, self.count)) - self._joined)
                    self._fail(1, f"nodes {missing} have not connected in {RENDEZVOUS_SECONDS} s")
                    return
                await asyncio.sleep(0.05)
        finally:
            server.close()
            for task in self._handshakes:
                task.cancel()

    async def _handle(self, reader, writer) -> None:
        """A connection to node 0, from anyone."""
        task = asyncio.current_task()
        assert task is not None
        self._handshakes.append(task)
        if len(self._handshakes) > _MAX_HANDSHAKES:
            self._handshakes.pop(0).cancel()
        rank = None
        try:
            rank = await asyncio.wait_for(self._admit(reader, writer), _HANDSHAKE_SECONDS)
        except ValueError:
            peer = writer.get_extra_info("peername")[0]
            self._warn_of_secret(f"{peer} does not have the secret of this job")
        except (OSError, asyncio.TimeoutError):
            pass
        finally:
            if task in self._handshakes:
                self._handshakes.remove(task)
            if rank is None:
                writer.transport.abort()
        if rank is not None:
            await self._listen(rank)

    async def _admit(self, reader, writer) -> int | None:
        """Number of the node that has connected; None if it must try again."""
        lines = await signed_lines.handshake(reader, writer, self.secret, listening=True)
        attempt, rank = map(int, (await lines.receive()).split())
        if attempt != self.attempt:
            lines.send(f"no: attempt {self.attempt} is running")
        elif rank in self._joined or not 0 < rank < self.count:
            lines.send(f"no: of {self.count} nodes, another one is number {rank}")
        else:
            lines.send(f"job {self.job}")
            self._add(rank, lines)
            return rank
        return None

    async def _connect(self) -> None:
        start = time.monotonic()
        answer = ""
        # Before Python 3.12, ``wait_for`` may lose the cancellation that comes from the end.
        while self.job is None and not self.ended:
            try:
                await asyncio.wait_for(self._join(), _HANDSHAKE_SECONDS)
            except _CONNECTION_ERRORS as error:
                if isinstance(error, ValueError):  # node 0 has answered
                    answer = f": {error}"
                if self._left(start, RENDEZVOUS_SECONDS) <= 0:
                    text = f"no connection to {self._node_0()} in {RENDEZVOUS_SECONDS} s{answer}"
                    self._fail(1, text)
                    return
                await asyncio.sleep(0.2)
        if self.job is not None:
            self._listening = self._loop.create_task(self._listen(0))

    async def _join(self) -> None:
        """
        Raises:
            OSError: node 0 cannot be reached.
            ValueError: node 0 refuses this node for now.
        """
        reader, writer = await asyncio.open_connection(
            self.address, self.port, family=socket.AF_INET, limit=signed_lines.LONGEST
        )
        try:
            lines = await signed_lines.handshake(reader, writer, self.secret, listening=False)
            lines.send(f"{self.attempt} {self.rank}")
            try:
                answer = await lines.receive()
            except (ConnectionError, ValueError):
                self._warn_of_secret(f"{self._node_0()} does not have the secret of this node")
                raise
            if not answer.startswith("job "):
                raise ValueError(answer)
            self._add(0, lines)
            self.job = answer[len("job ") :]
        finally:
            if self.job is None:
                writer.transport.abort()

    def _node_0(self) -> str:
        return f"node 0 ({self.address} port {self.port})"

    def _warn_of_secret(self, text: str) -> None:
        """Only once: strangers may connect to the port as often as they like."""
        if not self._warned:
            self._warned = True
            print(f"launch: {text}: {SECRET} must be the same", file=sys.stderr, flush=True)

    def _add(self, rank: int, lines: signed_lines.Lines) -> None:
        self._joined.add(rank)
        self._open[rank] = lines

    async def _listen(self, rank: int) -> None:
        lines = self._open[rank]
        try:
            while True:
                line = await self._receive(lines)
                if line != _ALIVE:
                    status, final = _end(line)
                    if status not in (0, SAVED_ON_SIGNAL):
                        self._fail(status, f"node {rank} ended with status {status}", final)
                    return
        except _CONNECTION_ERRORS:
            self._fail(1, f"lost node {rank}")
        finally:
            del self._open[rank]
            lines.writer.close()

    async def _receive(self, lines: signed_lines.Lines) -> str:
        """The next line.

        Raises:
            asyncio.TimeoutError: none has arrived in ``SILENCE_SECONDS``.
            ConnectionError, ValueError: see :meth:`signed_lines.Lines.receive`.
        """
        start = time.monotonic()
        line = asyncio.ensure_future(lines.receive())
        while not line.done():
            left = self._left(start, SILENCE_SECONDS)
            if left <= 0:
                line.cancel()
                raise asyncio.TimeoutError
            await asyncio.wait([line], timeout=left)
        return line.result()

    def _left(self, start: float, seconds: float) -> float:
        """What is left of ``seconds`` since ``start`` or since this launcher has continued."""
        return max(start, self._running.check()) + seconds - time.monotonic()

    def _fail(self, status: int, text: str, final: bool = False) -> None:
        if self.failure is None and not self.ended:
            self.failure = PeerFailure(status, f"launch: {text}\n", final)

    async def _send_heartbeats(self) -> None:
        while not self.ended:
            self._running.check()
            for lines in self._open.values():
                lines.send(_ALIVE)
            await asyncio.sleep(HEARTBEAT_SECONDS)


def _end(line: str) -> tuple[int, bool]:
    """Parse a node's last line: its exit status, and whether a restart is forbidden.

    Raises:
        ValueError: it is another line.
    """
    match = re.fullmatch("end ([0-9]{1,3}) ([01])", line)
    if match is None or int(match[1]) > 255:
        raise ValueError(f"not a line of a launcher: {line!r}")
    return int(match[1]), match[2] == "1"
