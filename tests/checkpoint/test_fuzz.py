"""20,000 mutated files: each is read or refused with a `CheckpointError`, fast and inert."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

COUNT = 20_000
SEED = 20_000


@pytest.mark.slow
def test_mutated_files_are_read_or_refused(golden):
    runner = pathlib.Path(__file__).with_name("fuzz_runner.py")
    command = [sys.executable, str(runner), str(golden), str(COUNT), str(SEED)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["count"] == COUNT
    assert report["wrong"] == []
    assert report["events"] == []
    assert report["slowest"] <= 2.0
    # Were all refused at the door, nothing behind it would have been tried.
    assert COUNT // 100 < report["read"] < COUNT // 2
