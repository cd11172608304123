"""``log.txt``: training continues without it, and it is made again."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

logger = logging.getLogger(__name__)

_FORMAT = "[%(asctime)s] %(name)s %(levelname)s: %(message)s"
_DATE = "%Y-%m-%d %H:%M:%S"


class LogFile(logging.FileHandler):
    """Appends to a file. If the file was removed or moved, it makes a new one whose first line
    says so. If it cannot be written, the standard error says so once, and the lines are lost."""

    def __init__(self, path: str):
        super().__init__(path, delay=True)
        self.stream: Any = None
        self.setFormatter(logging.Formatter(_FORMAT, _DATE))
        self.failed = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self.stream is not None and not self._is_there():
                self.stream.close()
                self.stream = None
                self.stream = self._open()
                logger.warning(f"{self.baseFilename} was removed during the run: it starts anew")
            super().emit(record)
        except OSError:  # the file cannot be opened
            self.handleError(record)
        else:
            self.failed = self.stream is None

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.stat(self.baseFilename), os.fstat(self.stream.fileno()))
        except OSError:
            return False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (name of the base class)
        if not self.failed:
            error = sys.exc_info()[1]
            print(f"warning: {self.baseFilename} cannot be written: {error}", file=sys.stderr)
        self.failed, self.stream = True, None

    def _open(self):
        os.makedirs(os.path.dirname(self.baseFilename), exist_ok=True)
        return open(self.baseFilename, "a", encoding="utf-8", errors="backslashreplace")


def log_file(folder: str, rank: int) -> LogFile:
    """The log file of a rank."""
    name = f"log.txt.rank{rank}" if rank else "log.txt"
    return LogFile(os.path.join(folder, name))
