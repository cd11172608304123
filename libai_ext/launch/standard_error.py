"""What a rank writes to its standard error: passed on at once, but for its last words."""

from __future__ import annotations

import os
import re
import threading

# How the engine, or Python in its place, begins to say that it ends; stacks of all threads follow.
_FATAL = re.compile(rb"^(?:F\d{8} |terminate called |Fatal Python error: )", re.MULTILINE)
_MOST_BYTES = 1 << 20
# For what is still on its way when a rank has ended.
_ARRIVAL_SECONDS = 1


class StandardError(threading.Thread):
    """Reads the pipe of one rank.

    From the first line of an abort on, what comes is held: the launcher may have a message in its
    place.
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
            if len(self.held) > _MOST_BYTES:  # no abort says so much
                self._show()

    def last_words(self) -> str:
        """Of a rank that has ended: what it wrote from the beginning of an abort on."""
        self.join(_ARRIVAL_SECONDS)
        return self.held.decode(errors="replace")

    def end(self, shown: bool) -> None:
        """Pass on what was held if it is to be ``shown``; the rank has ended."""
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
        pass  # nobody listens any more; the rank must not wait for that
