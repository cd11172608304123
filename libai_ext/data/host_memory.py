"""Batches in pinned memory, for copies to GPUs."""

from __future__ import annotations

import numpy as np
import oneflow as flow
from oneflow.framework.dtype import convert_numpy_dtype_to_oneflow_dtype

from libai_ext.placement import device_type


def host_tensor(array: np.ndarray) -> flow.Tensor:
    """A tensor on the host. With a GPU it is a copy in pinned memory, else it shares the array's
    memory. CUDA copies from unpinned memory through its own buffer, and waits.

    OneFlow may reuse pinned memory before a copy to the GPU is complete. It makes the stream of
    that memory wait for the copy, and ``numpy()`` waits for that stream.
    """
    if shares_memory():
        return flow.from_numpy(array)
    dtype = convert_numpy_dtype_to_oneflow_dtype(array.dtype)
    tensor = flow.empty(array.shape, dtype=dtype, pin_memory=True)
    np.copyto(tensor.numpy(), array)
    return tensor


def shares_memory() -> bool:
    """Whether tensors share the memory of their arrays."""
    return device_type() == "cpu"
