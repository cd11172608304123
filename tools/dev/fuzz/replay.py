"""Check all seeds and findings of all targets again, without atheris.

    python replay.py

Prints one JSON object: for each target, how many seeds were read, and how many findings were read
and refused. If an input is a finding again, it stops with a traceback.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from guard import Guard, limit_memory
from table import MODULES, find, findings, seeds


def main() -> None:
    report = {}
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        for name in MODULES:
            folder = Path(scratch, name)
            folder.mkdir()
            guard = Guard(find(name), folder)
            sound = seeds(guard.target)
            guard.start(sound)
            limit_memory()
            for data in sound:
                guard.check(data)
            read = [guard.check(data) for data in findings(name)]
            report[name] = dict(seeds=len(sound), read=sum(read), refused=len(read) - sum(read))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
