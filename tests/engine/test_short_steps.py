"""A step of a graph that ends before OneFlow has noted that it began."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from libai_ext.kernels.build import OneFlowWheel


def test_a_short_step_is_queued_late(launch, tmp_path):
    """OneFlow takes such a step out of an empty queue, and crashes."""
    here, library = Path(__file__).parent, tmp_path / "late_queue.so"
    name = OneFlowWheel.find().library("liboneflow-*.so")
    compiler = [os.environ.get("CXX", "c++"), "-shared", "-fPIC", f'-DLIBRARY="{name}"']
    subprocess.run([*compiler, here / "late_queue.cpp", "-o", library, "-ldl"], check=True)
    out = launch.python(here / "short_steps_run.py", env={"LD_PRELOAD": str(library)})
    assert float(out.splitlines()[-1]) > 0.8  # eight of the nine, 0.1 s each
