"""Each rank writes down its task and the task's deadline; its launcher ends a job that misses one.
A thread of the rank could not: the engine may hold Python's lock, or the process may be stopped."""

from __future__ import annotations

import faulthandler
import math
import os
import signal
import subprocess
import time
from typing import NamedTuple, Sequence

from libai_ext.files.anonymous import anonymous_file

# The launcher sets it: the descriptor of a file without a name. The rank writes its task there:
# start, allowed seconds, description.
DEADLINE_FILE = "LIBAI_EXT_DEADLINE_FILE"
# Makes a rank write the stacks of its threads to its standard error.
DUMP_STACKS = signal.SIGUSR2
_DUMP_SECONDS = 1
_CHECK_SECONDS = 1
# A launcher whose loop has stood still for so long was stopped itself, as a cluster suspends a job.
SUSPENDED_SECONDS = 10
_LINE = 240


class Task(NamedTuple):
    """What a rank is doing since ``start`` (monotonic clock). After ``report`` seconds the rank
    reports it with ``note``, after ``end`` seconds its launcher ends the job."""

    what: str
    start: float
    report: float = math.inf
    end: float = math.inf
    note: str = ""


current = Task("", 0.0)
_file: int | None = None


def begin(what: str, report: float = math.inf, end: float = math.inf, note: str = "") -> None:
    """Start a task in place of the current one; see :class:`Task`."""
    global current
    current = Task(what, time.monotonic(), report, end, note)
    if _file is not None:
        line = f"{current.start} {end} {what}".encode()[: _LINE - 1]
        os.pwrite(_file, line.ljust(_LINE - 1) + b"\n", 0)  # one write, read as a whole


def idle() -> None:
    """End the current task; the next one has no deadline."""
    begin("")


def open_file() -> None:
    """Open the launcher's file, if there is one, and let its signal dump stacks: even after the
    engine has redirected the standard error."""
    global _file
    number = os.environ.pop(DEADLINE_FILE, None)  # programs that this one starts must not use it
    if number is not None:
        _file = int(number)
        os.set_inheritable(_file, False)
        faulthandler.register(DUMP_STACKS, file=os.dup(2))


class RunningSince:
    """Since when this program has run without being suspended. The monotonic clock runs on while it
    is; a time limit counts from here.

    Attributes:
        time: as of the latest :meth:`check`.
    """

    def __init__(self):
        self.checked = self.time = time.monotonic()

    def check(self) -> float:
        """To be called more often than every ``SUSPENDED_SECONDS``; returns :attr:`time`."""
        now = time.monotonic()
        if now - self.checked > SUSPENDED_SECONDS:
            self.time = now
        self.checked = now
        return self.time


class DeadlineMonitor:
    """Checks the deadlines of a launcher's ranks.

    Attributes:
        files: one for each rank to inherit.
    """

    def __init__(self, ranks: int):
        self.files = [anonymous_file("deadline") for _ in range(ranks)]
        self.running = RunningSince()

    def overdue(self, ranks: Sequence[subprocess.Popen]) -> dict[int, str]:
        """Local ranks that have missed a deadline, with the reason; checks once a second."""
        now = time.monotonic()
        if now - self.running.checked < _CHECK_SECONDS:
            return {}
        self.running.check()
        found = (self._overdue(file, now) for file in self.files)
        return {i: what for i, what in enumerate(found) if what and ranks[i].poll() is None}

    def _overdue(self, file, now: float) -> str:
        try:
            line = os.pread(file.fileno(), _LINE, 0).decode(errors="replace")
            start, end, what = line.split(maxsplit=2)
            seconds, limit = now - max(float(start), self.running.time), float(end)
        except ValueError:  # no task
            return ""
        if seconds <= limit:
            return ""
        return f"{what.strip()} has taken {seconds:.0f} s, the limit is {limit:g} s"


def dump_stacks(processes: Sequence[subprocess.Popen]) -> None:
    """Have these ranks write their stacks, and wait for it."""
    for process in processes:
        process.send_signal(DUMP_STACKS)
    time.sleep(_DUMP_SECONDS)
