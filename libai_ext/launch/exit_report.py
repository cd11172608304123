"""Reports from a rank to its launcher: failure, finished work, advice, output of the start."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile

from libai_ext.files.anonymous import anonymous_file

# The launcher sets it: descriptors of files without names, one for each field. Named files would
# stay on the disk when the launcher is killed.
EXIT_REPORTS = "LIBAI_EXT_EXIT_REPORTS"
# Why the rank failed (the launcher shows it last); the exit status of a rank that has finished its
# work; advice for a device that is out of memory; what the engine prints while it starts; that the
# output directory is this job's.
FAILURE, FINISHED, MEMORY, START, BEGUN = FIELDS = (
    "failure",
    "finished",
    "memory",
    "start",
    "begun",
)
# The launcher sets it: a number that only the ranks of its job share.
JOB = "LIBAI_EXT_JOB"
# The launcher sets it: how many times the job was restarted after a crash.
ATTEMPT = "LIBAI_EXT_ATTEMPT"
# The launcher sets it: whether an earlier attempt has reported that its run has begun.
GOES_ON = "LIBAI_EXT_GOES_ON"
# The launcher sets it if its standard error is a terminal: that of a rank is a pipe.
ON_TERMINAL = "LIBAI_EXT_ON_TERMINAL"
# Exit statuses of a rank and of the launcher, besides 0, 1 and 128 + signal.
USAGE_ERROR = 2
DATA_UNAVAILABLE = 74
SAVED_ON_SIGNAL = 75
# Messages of OneFlow 0.9.0 about a full GPU: from CUDA, its eager allocator, cuBLAS and cuDNN.
_OUT_OF_MEMORY = re.compile(r"out of memory|(?:CUBLAS|CUDNN)_STATUS_ALLOC_FAILED", re.IGNORECASE)
_memory_advice = ""
_MAX_BYTES = 1 << 20  # of a field


class ExitReports:
    """The launcher's side of the reports of one rank."""

    def __init__(self):
        self._files = {field: anonymous_file(field) for field in FIELDS}

    def descriptors(self) -> list[int]:
        """The rank inherits them, in the order of ``FIELDS``."""
        return [file.fileno() for file in self._files.values()]

    def read(self, field: str) -> str:
        """Empty if the rank has not written it."""
        file = self._files[field].fileno()
        size = min(os.fstat(file).st_size, _MAX_BYTES)
        return os.pread(file, size, 0).decode(errors="replace") if size else ""

    def written_at(self, field: str) -> int:
        """Time in ns by the clock of the file; 0 if the rank has not written it."""
        status = os.fstat(self._files[field].fileno())
        return status.st_mtime_ns if status.st_size else 0


def _inherited() -> dict[str, int]:
    """Descriptors of this rank's fields. Empty without a launcher, and in a program that a rank
    has started: it may inherit the variable, but not the files."""
    numbers = [int(number) for number in os.environ.pop(EXIT_REPORTS, "").split()]
    try:
        states = [os.fstat(number) for number in numbers]
    except OSError:
        return {}
    if not all(stat.S_ISREG(state.st_mode) and state.st_nlink == 0 for state in states):
        return {}
    for number in numbers:
        os.set_inheritable(number, False)
    return dict(zip(FIELDS, numbers))


_fields = _inherited()


def launched() -> bool:
    """Whether this process is a rank of the launcher."""
    return bool(_fields)


def restarted() -> bool:
    """Whether the launcher has started this program again after a crash."""
    return int(os.environ.get(ATTEMPT, 0)) > 0


def goes_on() -> bool:
    """On rank 0: whether the run in the output directory is that of an earlier attempt of this job,
    which crashed. One that crashed before :func:`report_begun` has left what was there before."""
    return os.environ.get(GOES_ON) == "1"


def report_begun() -> None:
    """Report, on rank 0, that from now on the output directory holds the run of this job."""
    _write(BEGUN, "1")


def report_failure(text: str) -> bool:
    """Give ``text`` to the launcher to show; False if there is no launcher."""
    return _write(FAILURE, text)


def report_finished(status: int) -> None:
    """Report that all ranks have finished their work. ``status`` is then the exit status of the
    job, even if the engine aborts a rank that exits after another one."""
    _write(FINISHED, str(status))


def set_out_of_memory_advice(advice: str) -> None:
    """Set what this rank, or the launcher if the engine aborts it, says when the device is out of
    memory."""
    global _memory_advice
    _memory_advice = advice
    _write(MEMORY, advice)


@contextlib.contextmanager
def startup_output():
    """A file for what the engine prints while it starts. The launcher shows it if the engine
    aborts; otherwise this process prints it."""
    own = os.fdopen(os.dup(_fields[START]), "w+b") if _fields else tempfile.TemporaryFile()
    with own as file:
        try:
            yield file
        finally:
            os.ftruncate(file.fileno(), 0)


def out_of_memory(error: str, advice: str | None = None) -> str:
    """The message for an ``error`` about a full device, empty for other errors.

    Args:
        advice: None: that of this process.
    """
    advice = _memory_advice if advice is None else advice
    if not advice or not _OUT_OF_MEMORY.search(error):
        return ""
    asked = re.search(r"allocate size : (\d+)", error)
    amount = f"{int(asked[1]) / 2**30:.2f} GiB" if asked else "OneFlow does not say how much"
    return f"error: out of GPU memory ({amount} was asked for): {advice}\n"


def _write(field: str, text: str) -> bool:
    if not _fields:
        return False
    os.ftruncate(_fields[field], 0)
    os.pwrite(_fields[field], text.encode(errors="replace")[:_MAX_BYTES], 0)
    return True
