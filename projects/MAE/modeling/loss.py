"""The pre-training loss (MAE, section 3, "Reconstruction target"). L patches, P = p*p*C."""

from __future__ import annotations

import oneflow as flow

EPS = 1e-6


def normalize_patches(target: flow.Tensor) -> flow.Tensor:
    """Normalise each patch of [B, L, P] by its own mean and unbiased variance."""
    pixels = target.shape[-1]
    centred = target - target.mean(dim=-1, keepdim=True)
    variance = (centred * centred).sum(dim=-1, keepdim=True) / (pixels - 1)
    return centred * flow.rsqrt(variance + EPS)


def squared_error(prediction: flow.Tensor, target: flow.Tensor) -> flow.Tensor:
    """Mean squared error of each patch, float32 [B, L], from [B, L, P].

    Computed in float32 for every dtype of ``prediction``: in float16, squares overflow from 256 on.
    """
    error = prediction.to(flow.float32) - target.to(flow.float32)
    return (error * error).mean(dim=-1)


def masked_mean(per_patch: flow.Tensor, mask: flow.Tensor) -> flow.Tensor:
    """Loss of each sample [B]: mean of ``per_patch`` [B, L] over its removed patches (mask [B, L]
    = 1).

    Every sample loses the same number of patches, so the mean over samples equals the official
    code's mean over all removed patches of a batch.
    """
    return (per_patch * mask).sum(dim=1) / mask.sum(dim=1)
