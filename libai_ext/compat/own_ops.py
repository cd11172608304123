"""OneFlow has no function in Python for the ops of a plug-in.

Symptom: a plug-in can register an op with a gradient, and ``flow.stateful_op`` builds it, but only
C++ can run it.
Affected: OneFlow 0.9.0. Retire when the op that ``Build`` returns can be called.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import oneflow as flow

from libai_ext import kernels


def available_for(x: flow.Tensor) -> bool:
    """Whether ops of our own have kernels for this tensor's device and type."""
    return kernels.is_loaded() and not x.is_cuda and x.dtype == flow.float32


def call(
    name: str, inputs: Mapping[str, flow.Tensor], output: str, numbers: Sequence[float] = ()
) -> flow.Tensor:
    """Run an op of ``libai_ext/csrc/ops``, which has one output.

    Args:
        inputs: the tensors by their names, in the op's order.
        numbers: what the op takes beside them; float32.

    Raises:
        RuntimeError: the op does not take these shapes.
    """
    # This function runs any op. It also sets the attributes of the one that it is for, which
    # csrc/ops/own_op.h therefore gives to every op; two of them have a new meaning there.
    return flow._C.dispatch_crop_mirror_normalize_from_uint8(
        _operator(name, tuple(inputs), output),
        list(inputs.values()),
        mean=[float(number) for number in numbers],
        std=[float(tensor.requires_grad) for tensor in inputs.values()],
    )


@functools.lru_cache(maxsize=None)
def _operator(name: str, inputs: tuple[str, ...], output: str):
    builder = flow.stateful_op(name)
    for each in inputs:
        builder = builder.Input(each)
    return builder.Output(output).Build()
