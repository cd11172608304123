"""LiBai's ``Linear`` copies its input, and the gradient of its input.

Symptom: ``x.to_global(grad_sbp=x.sbp)`` in ``Linear.forward`` is two copies of an activation, also
where one rank holds all and there is nothing to say about the gradient's layout.
Affected: OneFlow 0.9.0, LiBai 0.1.1. Retire when such a ``to_global`` copies nothing.
"""

from __future__ import annotations

import oneflow as flow
from libai.layers import Linear

_libai_forward = Linear.forward


def _forward(self, x: flow.Tensor):
    if self.weight.placement.ranks.size > 1:
        return _libai_forward(self, x)
    x = flow.matmul(x, self.weight)
    if self.bias is None:
        return x
    return (x, self.bias) if self.skip_bias_add else x + self.bias


def apply() -> None:
    Linear.forward = _forward
