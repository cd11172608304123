"""LiBai's ``Linear`` copies and moves activations without need.

Symptom: ``x.to_global(grad_sbp=x.sbp)`` in ``Linear.forward`` is two copies of an activation, also
where every rank holds the whole weight and there is nothing to say about the gradient's layout.
Under tensor parallelism such a layer spreads its batch over the tensor-parallel ranks, which have
it already: they gather its output, and exchange its gradient; and OneFlow's graph compiler aborts
(``separated_header_mem_ptr``) unless the next layer undoes the spreading at once.
Affected: OneFlow 0.9.0, LiBai 0.1.1. Retire when such a ``to_global`` copies nothing, and a layer
with a whole weight leaves the layout of its input alone.
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
