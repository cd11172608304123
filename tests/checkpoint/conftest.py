"""Golden files, and real PyTorch in an interpreter of its own."""

from __future__ import annotations

import json
import pathlib
import subprocess

import pytest

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def golden() -> pathlib.Path:
    """The folder of the committed files; `make_torch_files.py` there wrote them."""
    return GOLDEN


@pytest.fixture(scope="session")
def oracle(oracle_python):
    """Runs a function of `oracle_checks.py` with real PyTorch: oracle("name", *arguments)."""
    script = pathlib.Path(__file__).with_name("oracle_checks.py")
    process = subprocess.Popen(
        [oracle_python, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def run(check: str, *arguments: object):
        process.stdin.write(json.dumps([check, *map(str, arguments)]) + "\n")
        process.stdin.flush()
        result, error = json.loads(process.stdout.readline())
        assert error is None, error
        return result

    yield run
    process.stdin.close()
    process.wait(timeout=30)
