"""LiBai's ``Linear`` copies and moves activations without need.

Symptom: ``x.to_global(grad_sbp=x.sbp)`` in ``Linear.forward`` copies an activation twice, also if
every rank holds the whole weight and the gradient's layout needs no change. With tensor parallelism
such a layer splits its batch over the tensor-parallel ranks, which already have all of it: they
gather its output and exchange its gradient. OneFlow's graph compiler aborts
(``separated_header_mem_ptr``) unless the next layer undoes the split at once.
Affected: OneFlow 0.9.0, LiBai 0.1.1. Retire when such a ``to_global`` copies nothing, and a layer
with a whole weight keeps the layout of its input.
"""

from __future__ import annotations

import oneflow as flow
from libai.layers import Linear

_libai_forward = Linear.forward


def _forward(self, x: flow.Tensor):
    if any(sbp != flow.sbp.broadcast for sbp in self.weight.sbp):
        return _libai_forward(self, x)
    x = flow.matmul(x, self.weight)
    if self.bias is None:
        return x
    return (x, self.bias) if self.skip_bias_add else x + self.bias


def apply() -> None:
    Linear.forward = _forward
