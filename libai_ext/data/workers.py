"""Worker processes that prefetch batches, and are restarted when they die.

OneFlow's DataLoader raises at any place in the training process when a worker is killed. It notices
after five seconds that a worker has exited with status 0, and never that one is stopped. A worker
that is killed while it writes to the common queue blocks the others. Here each worker has its own
pipe. A batch depends only on its request, so a new worker makes the same batches.
"""

from __future__ import annotations

import ctypes
import itertools
import logging
import multiprocessing
import os
import random
import signal
import sys
import traceback
from collections import deque
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator

import numpy as np

from libai_ext.errors import UserError
from libai_ext.launch.stop_signals import STOP_SIGNALS

logger = logging.getLogger(__name__)

# Starts of a worker for one batch. After that the batch is probably the cause.
MAX_STARTS = 4
# A worker that is found stopped so often in a row, once a second, is replaced. A debugger, or a
# cluster that suspends a job, continues it earlier or stops this process too.
LOOKS = 10
_LOOK_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1


def prefetch(
    make: Callable[[int, int, Any], Any], requests: Iterable, workers: int, ahead: int
) -> Iterator:
    """Yield ``make(worker, number, request)`` for each request, in order. Request i goes to worker
    i modulo ``workers``; ``number`` counts the requests of one worker from 0.

    Args:
        ahead: requests that each worker works on while a result is used.

    Raises:
        UserError: the one that a worker raised.
        RuntimeError: another error in a worker, or it died ``MAX_STARTS`` times at one request.
    """
    pool = [_Worker(number, make) for number in range(workers)]
    requests = iter(requests)
    try:
        for worker, request in zip(pool * ahead, requests):
            worker.ask(request)
        for worker in itertools.cycle(pool):
            if not worker.asked:
                return
            result = worker.answer()
            for request in itertools.islice(requests, 1):
                worker.ask(request)
            if isinstance(result, Exception):
                raise result
            yield result
    finally:
        for worker in pool:
            worker.end()


class _Worker:
    """A worker process, and its replacements."""

    def __init__(self, number: int, make: Callable):
        self.number = number
        self.make = make
        # Open requests, each with its number.
        self.asked: deque = deque()
        self.count = itertools.count()
        # How the processes that worked on the first request died.
        self.ends: list[str] = []
        self.parent = os.getpid()
        self._start()

    def ask(self, request) -> None:
        self.asked.append((next(self.count), request))
        self._send(self.asked[-1])

    def answer(self):
        """The result of the oldest request, or its error."""
        stopped = 0
        while stopped < LOOKS:
            try:
                if self.connection.poll(_LOOK_SECONDS):
                    result = self.connection.recv()
                    self.asked.popleft()
                    self.ends.clear()
                    return result
            except (EOFError, OSError):
                self._start_again()
            stopped = stopped + 1 if self._stopped() else 0
        self._start_again(f"was stopped for {LOOKS * _LOOK_SECONDS:.0f} s")
        return self.answer()

    def end(self) -> None:
        """Kill the process and wait for its end."""
        if os.getpid() != self.parent:  # collected as garbage in a forked process
            return
        self.process.kill()
        self.process.join()
        self.connection.close()

    def _start(self) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")
        arguments = self.number, self.make, theirs, self.connection, self.parent
        self.process = context.Process(target=_work, args=arguments, daemon=True)
        self.process.start()
        theirs.close()

    def _start_again(self, how: str | None = None) -> None:
        self.end()
        code = self.process.exitcode or 0
        if how is None:
            how = f"ended with status {code}" if code >= 0 else f"ended by {_name(-code)}"
        self.ends.append(how)
        text = f"data worker {self.number} (process {self.process.pid}) {how}"
        if len(self.ends) == MAX_STARTS:
            raise RuntimeError(f"{text}, like the {MAX_STARTS - 1} workers before it: {self.ends}")
        logger.warning(f"{text}; a new worker makes its batches")
        self._start()
        for request in self.asked:
            self._send(request)

    def _send(self, request) -> None:
        try:
            self.connection.send(request)
        except OSError:  # it has died; answer() notices
            pass

    def _stopped(self) -> bool:
        try:
            stat = Path(f"/proc/{self.process.pid}/stat").read_text()
        except OSError:
            return False
        return stat.rpartition(")")[2].split()[0] == "T"


def _name(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return name + " (by a user, or by the kernel when memory is short)" * (number == signal.SIGKILL)


def _work(number: int, make: Callable, connection, theirs, parent: int) -> None:
    """Runs in the worker."""
    theirs.close()
    # A signal to the job reaches its workers too: only the rank decides, and kills this one.
    for stop in STOP_SIGNALS:
        signal.signal(stop, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    if "oneflow" in sys.modules:  # programs that only read images do without it
        sys.modules["oneflow"].set_num_threads(1)
    random.seed(number)
    np.random.seed(number)
    while True:
        try:
            asked, request = connection.recv()
            connection.send(_result(make, number, asked, request))
        except (EOFError, OSError):  # the rank is done
            return


def _result(make: Callable, number: int, asked: int, request):
    try:
        return make(number, asked, request)
    except UserError as error:
        return error
    except Exception:
        return RuntimeError(f"in data worker {number}:\n{traceback.format_exc()}")
