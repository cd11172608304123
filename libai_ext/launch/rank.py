"""One rank of a job: its process, its reports and its standard error."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys

from libai_ext.launch import ports
from libai_ext.launch.exit_report import (
    EXIT_REPORTS,
    FAILURE,
    MEMORY,
    ON_TERMINAL,
    START,
    USAGE_ERROR,
    ExitReports,
    out_of_memory,
)
from libai_ext.launch.standard_error import StandardError

# For a rank whose GPU was full before it could set its own advice.
_FULL_AT_START = (
    "before anything was built. Another process holds the GPU: nvidia-smi lists the processes, "
    "CUDA_VISIBLE_DEVICES chooses another GPU"
)
_PR_SET_PDEATHSIG = 1


class Rank:
    """Starts the process of rank ``number``.

    Args:
        descriptor: a file that it inherits.
        stdin: as of ``Popen``.
    """

    def __init__(self, number: int, command: list[str], env: dict, descriptor: int, stdin):
        self.number = number
        self.reports = ExitReports()
        inherited = self.reports.descriptors()
        env = dict(env, **{EXIT_REPORTS: " ".join(map(str, inherited))})
        if os.isatty(2):
            columns, lines = os.get_terminal_size(2)
            env.update({ON_TERMINAL: "1", "COLUMNS": str(columns), "LINES": str(lines)})
        # A process group of its own, so that a rank and its data workers end together.
        self.process = subprocess.Popen(
            [sys.executable, "-u", *command],
            env=env,
            stdin=stdin,
            stderr=subprocess.PIPE,
            pass_fds=[descriptor, *inherited],
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        self.stderr = StandardError(self.process.stderr)

    def signal_group(self, number: int) -> None:
        """Signal the rank and its data workers."""
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass

    def failure_order(self, state: int, usage_error: bool) -> tuple[int, int]:
        """Sort key for the likeliest cause of a job's failure, for a rank that has failed.

        First a rank that was killed or ran out of memory, then those that reported a failure, by
        time, then those that the engine aborted, as it does when a peer is lost.

        Args:
            usage_error: a rank has reported an error that the user can correct: a crash of another
                one then counts as such an abort.
        """
        reported = self.reports.written_at(FAILURE)
        by_peer = (-signal.SIGABRT, *[-signal.SIGSEGV] * usage_error)
        own = state < 0 and (state not in by_peer or self._out_of_memory())
        return (0 if own else 1 if reported else 2), reported

    def failure(self, state: int) -> tuple[int, str]:
        """Exit status of the job and message, if this rank is the cause."""
        text = self.reports.read(FAILURE)
        if state == USAGE_ERROR and text:
            return state, text
        memory = self._out_of_memory()
        if state == -signal.SIGABRT and memory:
            return USAGE_ERROR, memory
        text = text or self.reports.read(START)
        taken = re.search(r"Port (\d+) is unavailable", text)
        if taken:  # another program took it after the launcher's check
            return USAGE_ERROR, f"error: {ports.refusal(taken[1], 'a program took it')}\n"
        how = f"exit status {state}" if state > 0 else signal.Signals(-state).name
        status = state if state > 0 else 128 - state
        return status, f"launch: rank {self.number} ended with {how}\n{text}"

    def _out_of_memory(self) -> str:
        """The message if the engine has aborted this rank because its GPU is full, or nothing."""
        advice = self.reports.read(MEMORY) or _FULL_AT_START
        return out_of_memory(self.stderr.fatal_message(), advice)


def _die_with_parent() -> None:
    """In the child: the kernel ends it when the launcher dies, even by SIGKILL."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
