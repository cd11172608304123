"""Programs for the launcher to start."""

from __future__ import annotations

import pytest


@pytest.fixture
def program(tmp_path):
    """Writes a program and gives its path; ``pids`` gets a line from each rank."""

    def write(body):
        path = tmp_path / "program.py"
        path.write_text(
            "import os, signal, subprocess, sys, time\n"
            "rank = int(os.environ['RANK'])\n"
            f"open({str(tmp_path / 'pids')!r}, 'a').write(f'{{os.getpid()}}\\n')\n" + body
        )
        return path

    return write
