"""LiBai's ``Linear`` copies and moves activations without need.

Symptom: ``x.to_global(grad_sbp=x.sbp)`` in ``Linear.forward`` copies an activation twice, also if
every rank holds the whole weight and the gradient's layout needs no change. With tensor parallelism
such a layer splits its batch over the tensor-parallel ranks, which already have all of it: they
gather its output and exchange its gradient. OneFlow's graph compiler aborts
(``separated_header_mem_ptr``) unless the next layer undoes the split at once. On CPU, adding the
bias and summing its gradient read each activation once more.
Affected: OneFlow 0.9.0, LiBai 0.1.1. Retire when such a ``to_global`` copies nothing, a layer with
a whole weight keeps the layout of its input, and OneFlow has a product with a bias on CPU.
"""

from __future__ import annotations

import oneflow as flow
from libai.layers import Linear

from libai_ext.compat import own_ops

_libai_forward = Linear.forward


def linear(x: flow.Tensor, weight: flow.Tensor, bias: flow.Tensor) -> flow.Tensor:
    """x W + b, on CPU with native kernels.

    Args:
        x: float32 [..., K], at least two dimensions; local, or global with a leading dimension
            split, or whole with the N below split.
        weight: [K, N].
        bias: [N].

    Returns:
        [..., N].

    Raises:
        RuntimeError: the shapes do not fit together.
    """
    return own_ops.call("libai_ext_linear", {"x": x, "weight": weight, "bias": bias}, "y")


def _forward(self, x: flow.Tensor):
    adds_bias = self.bias is not None and not self.skip_bias_add
    # A step of a graph does not become shorter with the op.
    native = adds_bias and x.ndim > 1 and own_ops.available_for(x) and not x.is_lazy
    if native and self.weight.sbp[-1] == flow.sbp.split(1):
        # Each tensor-parallel rank needs all of x, and x the sum of their gradients.
        x = x.to_global(sbp=[*x.sbp[:-1], flow.sbp.broadcast])
        x = x.to_global(grad_sbp=x.sbp)
    elif any(sbp != flow.sbp.broadcast for sbp in self.weight.sbp):
        return _libai_forward(self, x)  # without native kernels, or the bias follows a sum of ranks
    if native:
        return linear(x, self.weight, self.bias)
    x = flow.matmul(x, self.weight)
    if adds_bias:
        return x + self.bias
    return x if self.bias is None else (x, self.bias)


def apply() -> None:
    Linear.forward = _forward
