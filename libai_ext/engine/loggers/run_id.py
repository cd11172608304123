"""The id of a service's run, in ``loggers/NAME.json`` of the output directory."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path

from libai_ext.files.atomic import write_text
from libai_ext.files.regular import read_regular

logger = logging.getLogger(__name__)
_MOST_BYTES = 1 << 12


class RunId:
    """The file may come from elsewhere: a damaged one gives a warning, and counts as missing.

    Args:
        name: of the logger.
        pattern: of a whole id, a regular expression.
    """

    def __init__(self, output_dir: str, name: str, pattern: str):
        self.name = name
        self.path = Path(output_dir, "loggers", f"{name}.json")
        self.pattern = pattern

    def read(self) -> str | None:
        """The id; None if there is none."""
        if not os.path.lexists(self.path):
            return None
        try:
            id = json.loads(read_regular(self.path, _MOST_BYTES))["id"]
            if re.fullmatch(self.pattern, id):
                return id
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass
        logger.warning(f"{self.path} has no valid id: {self.name} gets a new run")
        return None

    def write(self, id: str) -> None:
        """
        Raises:
            OSError: the file cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps({"id": id}) + "\n")
