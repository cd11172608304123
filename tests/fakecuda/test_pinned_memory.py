"""Batches in pinned memory, on a device that does not exist."""

from __future__ import annotations

import pytest
from fakecuda.report import Count

CODE = """
from libai_ext.startup import start
start()
import numpy as np
import oneflow as flow
from libai_ext.data.host_memory import host_tensor

where = dict(placement=flow.placement("cuda", [0]), sbp=flow.sbp.split(0))
kept = []
for name in ("float32", "int64", "uint8", "bool"):
    for number in range(3):
        array = np.random.default_rng(number).integers(0, 2, (5, 3)).astype(name)
        tensor = host_tensor(array).to_global(**where)  # its memory is free for the next
        kept.append((array, tensor))
for array, tensor in kept:
    back = tensor.numpy()
    assert back.dtype == array.dtype and (back == array).all()
"""


@pytest.mark.slow
def test_numbers_arrive_from_pinned_memory(fake_gpus):
    gpus = fake_gpus()
    gpus.python("-c", CODE)
    assert gpus.report().h2d["pinned"] == Count(12, 3 * 15 * (4 + 8 + 1 + 1))
