"""Without a compiler nothing but speed is lost."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

# Whatever runs a kernel: layers, graphs, optimizers, resampling, batches on their way. What reads
# data, configs and weights is the same Python either way.
CORE = (
    "numerics",
    "optim",
    "modeling/test_mae.py",
    "modeling/test_partial.py",
    "modeling/test_vit.py",
    "engine/test_graph.py",
    "pictures/test_attention.py",
    "data/test_augment.py",
    "data/test_dataset.py",
    "data/test_shared_batches.py",
)
COMPILER = re.compile(r"(.*-)?(g\+\+|gcc|c\+\+|cc|clang|clang\+\+)(-[\d.]+)?")


@pytest.mark.slow
def test_the_core_passes_without_one(launch, tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    for folder in filter(os.path.isdir, os.get_exec_path()):
        for program in Path(folder).iterdir():
            link = programs / program.name
            if not COMPILER.fullmatch(program.name) and not os.path.lexists(link):
                link.symlink_to(program)
    env = {"CXX": "/nowhere/c++", "PATH": str(programs), "LIBAI_EXT_CACHE": str(tmp_path / "cache")}
    tests = [f"tests/{name}" for name in CORE]
    # Its cache would forget what has failed in the run around it.
    options = ("-q", "-p", "no:cacheprovider", "-m", "not slow")
    out = launch.python("-m", "pytest", *options, *tests, env=env, timeout=600)
    assert "failed" not in out and "passed" in out
    code = "from libai_ext import kernels; import oneflow; print(kernels.load().message)"
    message = launch.python("-c", code, env=env)
    assert "native kernels: off" in message and "g++" in message
    assert not list((tmp_path / "cache").rglob("*.so"))
