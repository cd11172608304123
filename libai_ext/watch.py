"""What a rank does and how long that may take: by its own word, for its launcher to end a job that
stands. The launcher can do so where a thread of the rank cannot: the engine may hold the
interpreter, the whole process may be stopped."""

from __future__ import annotations

import faulthandler
import math
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple, Sequence

from libai_ext.failure import FAILURE_FILE

# The end of the name of a rank's file: when it began, for how many seconds it may, what it does.
WATCH = ".watch"
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
    path = os.environ.get(FAILURE_FILE)
    if path and _file is None:
        faulthandler.register(STACKS, file=os.dup(2))
        _file = os.open(path + WATCH, os.O_WRONLY | os.O_CREAT, 0o600)


class Watchman:
    """Looks at the ranks of a launcher.

    Args:
        files: what ``FAILURE_FILE`` is for each of them.
    """

    def __init__(self, files: Sequence[Path]):
        self.files = [file.with_name(file.name + WATCH) for file in files]
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

    def _late(self, file: Path, now: float) -> str:
        try:
            start, end, what = file.read_text().split(maxsplit=2)
            seconds, limit = now - max(float(start), self.continued), float(end)
        except (OSError, ValueError):  # nothing is said, or nothing is done
            return ""
        if seconds <= limit:
            return ""
        return f"{what.strip()} has taken {seconds:.0f} s, more than the {limit:g} s that it may"


def show_stacks(processes: Sequence[subprocess.Popen]) -> None:
    """Of ranks that :class:`Watchman` has found."""
    for process in processes:
        process.send_signal(STACKS)
    time.sleep(_STACKS_SECONDS)
