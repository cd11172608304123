"""The pre-training loss (MAE, section 3, "Reconstruction target"). L patches, P = p*p*C."""

from __future__ import annotations

import oneflow as flow

EPS = 1e-6


def normalize_patches(target: flow.Tensor) -> flow.Tensor:
    """Each patch of [B, L, P] by its own mean and unbiased variance."""
    pixels = target.shape[-1]
    centred = target - target.mean(dim=-1, keepdim=True)
    variance = (centred * centred).sum(dim=-1, keepdim=True) / (pixels - 1)
    return centred * flow.rsqrt(variance + EPS)


def masked_mse(prediction: flow.Tensor, target: flow.Tensor, mask: flow.Tensor) -> flow.Tensor:
    """Loss of each sample [B]: mean over its removed patches (mask [B, L] = 1) of the mean
    squared error of a patch.

    Every sample loses the same number of patches, so that the mean over samples is the
    official code's mean over all removed patches of a batch. Computed in float32 whatever the
    dtype of ``prediction`` [B, L, P]: a square overflows float16 at 256.
    """
    error = prediction.to(flow.float32) - target.to(flow.float32)
    per_patch = (error * error).mean(dim=-1)
    return (per_patch * mask).sum(dim=1) / mask.sum(dim=1)
