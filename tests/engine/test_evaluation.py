"""Every sample counts exactly once, whatever the size of the data set and of the job."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from evaluation_worker import table

pytestmark = pytest.mark.slow  # real launches


def expected(size):
    logits, labels = (array[:size] for array in table())
    ranks, losses = [], []
    for row, label in zip(logits.astype(np.float64), labels):
        order = sorted(range(len(row)), key=lambda k: (-row[k], k))
        ranks.append(order.index(label))
        shifted = row - row.max()
        losses.append(-(shifted - np.log(np.exp(shifted).sum()))[label])
    return {
        "top1": 100 * sum(rank < 1 for rank in ranks) / size,
        "top5": 100 * sum(rank < 5 for rank in ranks) / size,
        "loss": math.fsum(losses) / size,
    }


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_metrics_of_1_to_40_samples(launch, tmp_path, processes):
    worker = "tests/engine/evaluation_worker.py"
    output = tmp_path / "results.json"
    launcher = ["-m", "libai_ext.launch", "--nproc-per-node", processes]
    launch.python(*launcher, worker, output)
    results = json.loads(output.read_text())
    assert results == {str(size): expected(size) for size in range(1, 41)}
