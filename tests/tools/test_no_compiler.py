"""Without a compiler nothing but speed is lost."""

from __future__ import annotations

import pytest


@pytest.mark.slow
def test_the_core_passes_without_one(launch, tmp_path):
    env = {"CXX": "/nowhere/c++", "PATH": "/nowhere", "LIBAI_EXT_CACHE": str(tmp_path)}
    folders = [f"tests/{name}" for name in ("numerics", "modeling", "engine", "data", "optim")]
    out = launch.python("-m", "pytest", "-q", *folders, "-m", "not slow", env=env, timeout=600)
    assert "failed" not in out and "passed" in out
    code = "from libai_ext import kernels; import oneflow; print(kernels.load().message)"
    message = launch.python("-c", code, env=env)
    assert "native kernels: off" in message and "g++" in message
    assert not list(tmp_path.rglob("*.so"))
