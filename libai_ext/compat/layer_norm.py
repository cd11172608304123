"""OneFlow has no CPU kernel for layer normalisation.

Symptom: ``flow._C.layer_norm_affine`` on CPU ends the process with a fatal "TODO";
``LayerNorm(elementwise_affine=False)`` reads attributes that do not exist.
Affected: OneFlow 0.9.0, LiBai 0.1.1. Retire when OneFlow normalises layers on CPU.
"""

from __future__ import annotations

import oneflow as flow
from libai.layers import LayerNorm

from libai_ext import kernels


def layer_norm(x: flow.Tensor, weight, bias, eps: float) -> flow.Tensor:
    """Layer normalisation over the last dimension; ``weight`` and ``bias`` are [D] or None."""
    if x.is_cuda or kernels.is_loaded():
        axis = {"begin_norm_axis": x.ndim - 1, "begin_params_axis": x.ndim - 1, "epsilon": eps}
        if weight is None:
            return flow._C.layer_norm(x, **axis)
        return flow._C.layer_norm_affine(x, weight, bias, **axis)
    # Broadcasting a size-1 last dimension is slow on CPU, an outer product with ones is not.
    ones = _ones_row(x)
    centred = x - flow.matmul(x.mean(-1, keepdim=True), ones)
    inv_std = flow.rsqrt((centred * centred).mean(-1, keepdim=True) + eps)
    y = centred * flow.matmul(inv_std, ones)
    return y if weight is None else y * weight + bias


def _ones_row(x: flow.Tensor) -> flow.Tensor:
    # The functional call: flow.ones is a module, and nn.Graph warns of unregistered modules.
    shape = (1, x.shape[-1])
    if not x.is_global:
        return flow._C.constant(shape, 1.0, dtype=x.dtype, device=x.device)
    sbp = [flow.sbp.broadcast] * len(x.sbp)
    return flow._C.global_constant(shape, 1.0, dtype=x.dtype, placement=x.placement, sbp=sbp)


def _forward(self, x: flow.Tensor) -> flow.Tensor:
    if self.normalized_shape != tuple(x.shape[-1:]):
        raise ValueError(
            f"LayerNorm over {self.normalized_shape} was given {tuple(x.shape)}; "
            "only the last dimension can be normalised"
        )
    return layer_norm(x, self.weight, self.bias, self.eps)


def apply() -> None:
    LayerNorm.forward = _forward
