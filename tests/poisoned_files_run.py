"""Runs commands of the project one after the other in one process, each with one file poisoned.

    python tests/poisoned_files_run.py STEPS.json

STEPS.json: a list of steps with ``program`` (a module with ``main``), ``arguments``, and ``file``
and ``content`` (hexadecimal): what lies in a file while the command runs. A line of JSON for each:
how it ended, and its message.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
from pathlib import Path

from libai_ext.checkpoint import manifest
from libai_ext.engine import cli as entry
from libai_ext.errors import UserError


def outcome(program: str, arguments: list[str]) -> list[str]:
    sys.argv[1:] = arguments
    for name in ("libai", "libai_ext", "projects"):
        logging.getLogger(name).handlers.clear()  # they write to the previous run's folder
    try:
        return ["status", str(importlib.import_module(program).main() or 0)]
    except UserError as error:
        return ["refused", str(error)]
    except SystemExit as error:
        return ["status", str(error.code)]
    except Exception as error:
        return [type(error).__name__, str(error)]


def poison(file: Path, content: bytes) -> None:
    """And whoever did it wrote the checksums anew."""
    file.write_bytes(content)
    for folder in file.parents[:2]:
        if (folder / manifest.MANIFEST).exists():
            manifest.write(folder)


def program() -> None:
    for step in json.loads(Path(sys.argv[1]).read_text()):
        before = None
        if step["file"]:
            file = Path(step["file"])
            before = file.read_bytes() if file.exists() else b""
            poison(file, bytes.fromhex(step["content"]))
        print("outcome", json.dumps(outcome(step["program"], step["arguments"])), flush=True)
        if before is not None:
            poison(file, before)


if __name__ == "__main__":
    entry.run(program)
