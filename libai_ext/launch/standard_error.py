"""Passes on the standard error of a rank, and holds back the fatal message of an abort."""

from __future__ import annotations

import os
import re
import threading

# First line of a fatal message, by the engine or by Python; stacks of all threads follow.
_FATAL = re.compile(rb"^(?:F\d{8} |terminate called |Fatal Python error: )", re.MULTILINE)
_MAX_BYTES = 1 << 20
# A rank has ended, but its output may still be on the way.
_ARRIVAL_SECONDS = 1


class StandardError(threading.Thread):
    """Reads the pipe of one rank.

    It holds back everything from the first line of a fatal message: the launcher may print a
    plainer message instead.
    """

    def __init__(self, pipe):
        super().__init__(daemon=True)
        self.pipe = pipe
        self.held = b""
        self.start()

    def run(self) -> None:
        while True:
            chunk = os.read(self.pipe.fileno(), 1 << 16)
            if not chunk:
                return
            if not self.held:
                fatal = _FATAL.search(chunk)
                start = fatal.start() if fatal else len(chunk)
                _write(chunk[:start])
                chunk = chunk[start:]
            self.held += chunk
            if len(self.held) > _MAX_BYTES:  # too long for a fatal message
                self._show()

    def fatal_message(self) -> str:
        """What was held back; the rank has ended."""
        self.join(_ARRIVAL_SECONDS)
        return self.held.decode(errors="replace")

    def end(self, shown: bool) -> None:
        """Pass on what was held back if ``shown``; the rank has ended."""
        self.join(_ARRIVAL_SECONDS)
        if shown:
            self._show()

    def _show(self) -> None:
        held, self.held = self.held, b""
        _write(held)


def _write(text: bytes) -> None:
    try:
        while text:
            text = text[os.write(2, text) :]
    except OSError:
        pass  # nobody reads it any more; the rank must not block
