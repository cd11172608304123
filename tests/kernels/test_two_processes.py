"""Global tensors on two real processes give what one process gives."""

import sys
from pathlib import Path

import numpy as np
import pytest

WORKER = Path(__file__).with_name("global_tensors_worker.py")


def _run(launch, processes, output, layout):
    launcher = ("-m", "libai_ext.launch", "--nproc-per-node", processes)
    launch(sys.executable, *launcher, WORKER, output, layout, env={"OMP_NUM_THREADS": "1"})
    return np.load(output)


@pytest.fixture(scope="module")
def one_process(launch, tmp_path_factory):
    return _run(launch, 1, tmp_path_factory.mktemp("one") / "results.npz", "data")


@pytest.mark.parametrize("layout", ["data", "tensor"])
def test_two_processes_agree_with_one(launch, layout, one_process, tmp_path):
    two = _run(launch, 2, tmp_path / "results.npz", layout)
    assert set(two.files) == set(one_process.files)
    for name in two.files:
        expected = one_process[name]
        assert np.abs(two[name] - expected).max() <= 2e-6 * np.abs(expected).max(), name
