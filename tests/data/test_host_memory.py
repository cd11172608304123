"""The memory of batches on CPU; tests/fakecuda has that on GPUs."""

from __future__ import annotations

import numpy as np

from libai_ext.data.host_memory import host_tensor


def test_on_cpu_a_tensor_is_its_array():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensor = host_tensor(array)
    array[1, 2] = 7
    assert tensor.numpy().tolist() == [[0, 1, 2], [3, 4, 7]]
