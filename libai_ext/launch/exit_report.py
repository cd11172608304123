"""What the launcher and its ranks tell each other: their job, restarts, exit statuses, failures."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import stat
import tempfile
import time

from libai_ext.files.anonymous import anonymous_file

# Set by the launcher: the descriptors of files without names, one for each kind of word. With names
# they would stay when the launcher is killed.
WORDS = "LIBAI_EXT_WORDS"
# Why a rank failed, shown once, at the end; the exit status of ranks whose work is done; what to
# say should the memory of the device not suffice; what the engine says while it is starting.
FAILURE, SETTLED, MEMORY, START = KINDS = ("failure", "settled", "memory", "start")
# Set by the launcher: a number that the ranks of its job have in common, and no others.
JOB = "LIBAI_EXT_JOB"
# Set by the launcher: 0, or which restart after a crash this is.
ATTEMPT = "LIBAI_EXT_ATTEMPT"
# Set by the launcher where its standard error is a terminal: a rank's is a pipe.
ON_TERMINAL = "LIBAI_EXT_ON_TERMINAL"
# Exit statuses of a rank and of the launcher, beside 0, 1 and 128 + signal.
USAGE_ERROR = 2
DATA_UNAVAILABLE = 74
SAVED_ON_SIGNAL = 75
# What a terminal, a cluster's scheduler and a cluster's warning send: save and leave.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
# A cluster signals the ranks and the launcher one after the other: that is one request.
MOMENT_SECONDS = 2
# The ways in which OneFlow 0.9.0 says so: CUDA's, the eager allocator's, cuBLAS's and cuDNN's.
_OUT_OF_MEMORY = re.compile(r"out of memory|(?:CUBLAS|CUDNN)_STATUS_ALLOC_FAILED", re.IGNORECASE)
_memory_words = ""
_MOST_SAID = 1 << 20  # bytes of a word


class Words:
    """What one rank leaves to its launcher, as the launcher sees it."""

    def __init__(self):
        self._files = {kind: anonymous_file(kind) for kind in KINDS}

    def descriptors(self) -> list[int]:
        """For the rank to inherit, in the order of ``WORDS``."""
        return [file.fileno() for file in self._files.values()]

    def read(self, kind: str) -> str:
        """Empty where nothing was left."""
        file = self._files[kind].fileno()
        size = min(os.fstat(file).st_size, _MOST_SAID)
        return os.pread(file, size, 0).decode(errors="replace") if size else ""

    def left_at(self, kind: str) -> int:
        """When, in ns, by the clock of the file; 0 where nothing was left."""
        status = os.fstat(self._files[kind].fileno())
        return status.st_mtime_ns if status.st_size else 0


def _inherited() -> dict[str, int]:
    """Descriptors of this rank's words by kind; none without a launcher, nor in a program that a
    rank has started: that may have the variable, but not the files."""
    numbers = [int(number) for number in os.environ.pop(WORDS, "").split()]
    try:
        states = [os.fstat(number) for number in numbers]
    except OSError:
        return {}
    if not all(stat.S_ISREG(state.st_mode) and state.st_nlink == 0 for state in states):
        return {}
    for number in numbers:
        os.set_inheritable(number, False)
    return dict(zip(KINDS, numbers))


_words = _inherited()


def stop_signals() -> tuple[int, ...]:
    """``STOP_SIGNALS`` without SIGHUP where ``nohup`` has had it ignored: the run is to outlive
    its terminal."""
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        return tuple(number for number in STOP_SIGNALS if number != signal.SIGHUP)
    return STOP_SIGNALS


class Insistence:
    """Whether a signal says for the second time, after ``MOMENT_SECONDS``, what it said before."""

    def __init__(self):
        self._first: dict[int, float] = {}

    def add(self, number: int) -> bool:
        now = time.monotonic()
        return now - self._first.setdefault(number, now) >= MOMENT_SECONDS


def launched() -> bool:
    """Whether this process is a rank of the launcher."""
    return bool(_words)


def restarted() -> bool:
    """Whether the launcher has started this program again after a crash."""
    return int(os.environ.get(ATTEMPT, 0)) > 0


def tell(text: str) -> bool:
    """Leave ``text`` to the launcher; False where there is none to show it."""
    return _leave_word(text, FAILURE)


def settle(status: int) -> None:
    """Tell the launcher that this rank and all its peers have done their work: should the engine
    abort one of them on the way out, since another is gone, ``status`` stands."""
    _leave_word(str(status), SETTLED)


def foresee_out_of_memory(words: str) -> None:
    """What this rank, or the launcher in its place, is to say when the device's memory does not
    suffice: the engine may abort then."""
    global _memory_words
    _memory_words = words
    _leave_word(words, MEMORY)


@contextlib.contextmanager
def starting():
    """A file for what the engine says at its start: the launcher shows it where the engine aborts,
    and this process has to pass it on where not."""
    own = os.fdopen(os.dup(_words[START]), "w+b") if _words else tempfile.TemporaryFile()
    with own as file:
        try:
            yield file
        finally:
            os.ftruncate(file.fileno(), 0)


def out_of_memory(said: str, words: str | None = None) -> str:
    """The message for a rank that has ``said`` so, or nothing; ``words``: what it foresaw, where
    that is not this process."""
    words = _memory_words if words is None else words
    if not words or not _OUT_OF_MEMORY.search(said):
        return ""
    asked = re.search(r"allocate size : (\d+)", said)
    amount = f"{int(asked[1]) / 2**30:.2f} GiB" if asked else "OneFlow does not say how much"
    return f"error: out of GPU memory ({amount} was asked for): {words}\n"


def _leave_word(text: str, kind: str) -> bool:
    if not _words:
        return False
    os.ftruncate(_words[kind], 0)
    os.pwrite(_words[kind], text.encode(errors="replace")[:_MOST_SAID], 0)
    return True
