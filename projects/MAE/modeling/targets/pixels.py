"""Pixels, as they are or normalised (MAE, section 3, "Reconstruction target")."""

from __future__ import annotations

import numpy as np
import oneflow as flow

from libai_ext.layers.patch_embedding import patchify
from projects.MAE.modeling.loss import EPS, normalize_patches
from projects.MAE.modeling.targets.base import Target


class Pixels(Target):
    """The pixels of a patch, P = p*p*C in the order (row, column, channel).

    Args:
        normalized: normalise each patch by its own mean and unbiased deviation.
    """

    def __init__(self, normalized: bool = False):
        super().__init__()
        self.normalized = normalized

    def prepare(self, img_size, patch_size: int, in_chans: int) -> None:
        self.patch_size = patch_size
        self.width = patch_size**2 * in_chans

    def forward(self, images: flow.Tensor) -> flow.Tensor:
        """[B, C, H, W] to [B, L, p*p*C]."""
        target = patchify(images, self.patch_size, channels_last=True)
        return normalize_patches(target) if self.normalized else target

    def as_pixels(self, prediction: np.ndarray, patches: np.ndarray) -> np.ndarray:
        """A normalised prediction gets the mean and the deviation of the original patch."""
        if not self.normalized:
            return prediction
        variance = patches.var(axis=-1, ddof=1, keepdims=True)
        return prediction * np.sqrt(variance + EPS) + patches.mean(-1, keepdims=True)
