"""Ranks of two jobs that meet in spite of all: started by hand, on one port."""

from __future__ import annotations

import os
import subprocess
import sys

from libai_ext.launch import ports

PROGRAM = """
from libai_ext.engine import cli as entry
from libai_ext.startup import start
entry.run(start)
"""


def test_ranks_know_those_of_another_job():
    port, held = ports.free()
    place = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2")
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env=dict(os.environ, **place, RANK=str(rank), LOCAL_RANK=str(rank), LIBAI_EXT_JOB=job),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, job in enumerate(["one", "two"])
    ]
    errors = [rank.communicate(timeout=100)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2], errors
    said = f"error: ranks of another job have connected to port {port} of 127.0.0.1: set another"
    assert errors == [f"{said} PORT for one of the two\n"] * 2
