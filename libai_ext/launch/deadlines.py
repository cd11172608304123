"""Each rank says what it does and how long that may take, and its launcher ends a job that hangs.
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

# Set by the launcher: the descriptor of a file without a name, in which the rank writes when it
# began, how many seconds it may take, and what it does.
WATCH_FILE = "LIBAI_EXT_WATCH_FILE"
# Has a rank write the stacks of its threads to its standard error.
STACKS = signal.SIGUSR2
_STACKS_SECONDS = 1
_LOOK_SECONDS = 1
# A launcher that has not looked for so long was stopped itself, as a cluster suspends a job.
_SUSPENDED_SECONDS = 10
_LINE = 240


class Task(NamedTuple):
    """What is done now: since when, by the machine's monotonic clock; after how many seconds the
    rank says so, and after how many its launcher ends the job; what to say beside."""

    what: str
    start: float
    report: float = math.inf
    end: float = math.inf
    note: str = ""


current = Task("", 0.0)
_file: int | None = None


def expect(what: str, report: float = math.inf, end: float = math.inf, note: str = "") -> None:
    """The task before is done, ``what`` begins; ``report`` and ``end`` in seconds."""
    global current
    current = Task(what, time.monotonic(), report, end, note)
    if _file is not None:
        line = f"{current.start} {end} {what}".encode()[: _LINE - 1]
        os.pwrite(_file, line.ljust(_LINE - 1) + b"\n", 0)  # one write, read as a whole


def idle() -> None:
    """Nothing is done that could take too long."""
    expect("")


def open_file() -> None:
    """Let the launcher know, if there is one; also the stacks, even where the engine has taken the
    standard error away."""
    global _file
    number = os.environ.pop(WATCH_FILE, None)  # it is no other program's
    if number is not None:
        _file = int(number)
        os.set_inheritable(_file, False)
        faulthandler.register(STACKS, file=os.dup(2))


class Watchman:
    """Looks at the ranks of a launcher.

    Attributes:
        files: one a rank, for it to inherit.
    """

    def __init__(self, ranks: int):
        self.files = [anonymous_file("watch") for _ in range(ranks)]
        self.looked = self.continued = time.monotonic()

    def late(self, ranks: Sequence[subprocess.Popen]) -> dict[int, str]:
        """Ranks that run and take too long, and what they do; a look every second."""
        now = time.monotonic()
        if now - self.looked < _LOOK_SECONDS:
            return {}
        if now - self.looked > _SUSPENDED_SECONDS:
            self.continued = now
        self.looked = now
        found = (self._late(file, now) for file in self.files)
        return {i: what for i, what in enumerate(found) if what and ranks[i].poll() is None}

    def _late(self, file, now: float) -> str:
        try:
            line = os.pread(file.fileno(), _LINE, 0).decode(errors="replace")
            start, end, what = line.split(maxsplit=2)
            seconds, limit = now - max(float(start), self.continued), float(end)
        except ValueError:  # nothing is said, or nothing is done
            return ""
        if seconds <= limit:
            return ""
        return f"{what.strip()} has taken {seconds:.0f} s, more than the {limit:g} s that it may"


def show_stacks(processes: Sequence[subprocess.Popen]) -> None:
    """Of ranks that :class:`Watchman` has found."""
    for process in processes:
        process.send_signal(STACKS)
    time.sleep(_STACKS_SECONDS)
