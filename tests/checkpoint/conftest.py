"""Golden files, and real PyTorch in an interpreter of its own."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess

import pytest

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def golden() -> pathlib.Path:
    """The folder of the committed files; `make_torch_files.py` there wrote them."""
    return GOLDEN


@pytest.fixture(scope="session")
def oracle():
    """Runs a function of `oracle_checks.py` with real PyTorch: oracle("name", *arguments)."""
    interpreter = os.environ["MAE_ORACLE_PYTHON"]
    script = pathlib.Path(__file__).with_name("oracle_checks.py")

    def run(check: str, *arguments: object):
        command = [interpreter, str(script), check, *map(str, arguments)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout.splitlines()[-1])

    return run
