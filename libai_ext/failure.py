"""What the launcher and its ranks tell each other: their job, restarts, exit statuses, failures."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import tempfile
import time

# Set by the launcher: a file of each rank's own. What it holds is shown once, at the end.
FAILURE_FILE = "LIBAI_EXT_FAILURE_FILE"
# The end of the name of another one: the exit status of ranks whose work is done.
SETTLED = ".settled"
# Of a third one: what to say should the memory of the device not suffice.
MEMORY = ".memory"
# Set by the launcher: the descriptor of a file without a name, for what the engine says while it is
# starting.
START_FILE = "LIBAI_EXT_START_FILE"
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
    return FAILURE_FILE in os.environ


def restarted() -> bool:
    """Whether the launcher has started this program again after a crash."""
    return int(os.environ.get(ATTEMPT, 0)) > 0


def tell(text: str) -> bool:
    """Leave ``text`` to the launcher; False where there is none to show it."""
    return _leave_word(text, "")


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
    number = os.environ.pop(START_FILE, None)
    with tempfile.TemporaryFile() if number is None else os.fdopen(int(number), "w+b") as file:
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


def _leave_word(text: str, suffix: str) -> bool:
    path = os.environ.get(FAILURE_FILE)
    if not path:
        return False
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(path + suffix, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
    except OSError:
        return False
    return True
