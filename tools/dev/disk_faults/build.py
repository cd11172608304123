"""Builds the shim and starts :mod:`points` under it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from libai_ext.kernels.build import find_compiler

HERE = Path(__file__).resolve().parent


def enumerate_faults(folder: Path, step: int = 1) -> bool:
    """Print the number of faults and of those survived; returns whether all were.

    Args:
        folder: gets the files of the runs.
        step: every ``step``-th disk operation fails in turn.

    Raises:
        RuntimeError: there is no C++ compiler, or it failed.
    """
    compiler = find_compiler()
    if compiler is None:
        raise RuntimeError("--faults needs a C++ compiler: install g++ or name one in $CXX")
    shim = folder / "shim.so"
    command = [compiler, "-O1", "-shared", "-fPIC", str(HERE / "shim.cpp"), "-o", str(shim)]
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr}")
    # Forked processes save: only Python code may run in them.
    env = dict(os.environ, LD_PRELOAD=str(shim), LIBAI_EXT_NATIVE="0")
    command = [sys.executable, str(HERE / "points.py"), str(folder), str(step)]
    return subprocess.run(command, env=env).returncode == 0
