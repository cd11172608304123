"""How a program ends that ``libai_ext.engine.cli`` runs, without the engine."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

RUN = "import os, signal, sys; from libai_ext.engine import cli; cli.run(lambda: {})"
KILL = f"os.kill(os.getpid(), {int(signal.SIGINT)})"


@pytest.mark.parametrize(
    "program, status, said",
    [
        ("sys.exit()", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("sys.exit('no labels\\x1b')", 1, "no labels\\x1b\n"),
        ("sys.exit(['no labels'])", 1, "['no labels']\n"),
        (KILL, 130, ""),
    ],
)
def test_an_exit_is_that_of_python(program, status, said):
    command = [sys.executable, "-c", RUN.format(program)]
    out = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (out.returncode, out.stderr, out.stdout) == (status, said, "")


def test_a_message_of_all_ranks_is_shown_once(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(RUN.format("sys.exit('no labels')"))
    command = [sys.executable, "-m", "libai_ext.launch", "--nproc-per-node", "2", path]
    out = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert out.returncode == 1
    assert out.stderr.split("\n")[1:] == ["no labels", ""]
