"""Global tensors on two real processes give what one process gives."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

WORKER = Path(__file__).with_name("global_tensors_worker.py")


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _run(processes, output, layout):
    command = [sys.executable, "-m", "oneflow.distributed.launch"]
    command += ["--nproc_per_node", str(processes), "--master_port", str(_free_port())]
    command += [str(WORKER), str(output), layout]
    root = str(WORKER.parents[2])
    # A group of its own, so that no rank outlives a launcher that hangs or dies.
    launcher = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        text, _ = launcher.communicate(timeout=100)
    finally:
        try:
            os.killpg(launcher.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    assert launcher.returncode == 0, text
    return np.load(output)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    return _run(1, tmp_path_factory.mktemp("one") / "results.npz", "data")


@pytest.mark.parametrize("layout", ["data", "tensor"])
def test_two_processes_agree_with_one(layout, one_process, tmp_path):
    two = _run(2, tmp_path / "results.npz", layout)
    assert set(two.files) == set(one_process.files)
    for name in two.files:
        expected = one_process[name]
        assert np.abs(two[name] - expected).max() <= 2e-6 * np.abs(expected).max(), name
