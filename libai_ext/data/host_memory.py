"""Batches in the memory from which a GPU is fed."""

from __future__ import annotations

import numpy as np
import oneflow as flow
from oneflow.framework.dtype import convert_numpy_dtype_to_oneflow_dtype

from libai_ext.placement import device_type


def host_tensor(array: np.ndarray) -> flow.Tensor:
    """Tensor on the host: of the array's own memory, or where there is a GPU a copy of it in
    pinned memory. CUDA copies from other memory through a buffer of its own, and waits.

    OneFlow may give out pinned memory from which a copy to the GPU is still on its way; but it has
    the stream of that memory wait for the copy, and ``numpy()`` waits for that stream.
    """
    if shares_memory():
        return flow.from_numpy(array)
    dtype = convert_numpy_dtype_to_oneflow_dtype(array.dtype)
    tensor = flow.empty(array.shape, dtype=dtype, pin_memory=True)
    np.copyto(tensor.numpy(), array)
    return tensor


def shares_memory() -> bool:
    """Whether tensors hold on to the arrays that they are made of."""
    return device_type() == "cpu"
