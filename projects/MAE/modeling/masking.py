"""Random masking (MAE, section 3). B batch, L patches, K kept patches, D width."""

from __future__ import annotations

import numpy as np
import oneflow as flow


class MaskingNoise:
    """Data field: uniform noise [L] float32 of one sample; the K lowest patches stay visible.

    Drawn in the data workers from the sample's own generator, so that a mask depends on
    (seed, epoch, sample index) and on nothing else.
    """

    name = "noise"

    def __init__(self, num_patches: int):
        self.num_patches = num_patches

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        return rng.random(self.num_patches, dtype=np.float32)


def num_kept(num_patches: int, mask_ratio: float) -> int:
    """K = int(L * (1 - ratio)), rounded down as the official code does."""
    return int(num_patches * (1 - mask_ratio))


def random_masking(noise: flow.Tensor, keep: int) -> tuple[flow.Tensor, flow.Tensor, flow.Tensor]:
    """Shuffle by noise.

    Args:
        noise: [B, L].
        keep: K.

    Returns:
        ids_keep [B, K]: kept patches in shuffled order; ids_restore [B, L]: where each patch
        stands in that order; mask [B, L] float32: 1 = removed.
    """
    ids_shuffle = flow.argsort(noise, dim=1)
    ids_restore = flow.argsort(ids_shuffle, dim=1)
    mask = (ids_restore >= keep).to(flow.float32)
    return ids_shuffle[:, :keep], ids_restore, mask


def gather_tokens(tokens: flow.Tensor, ids: flow.Tensor) -> flow.Tensor:
    """tokens [B, N, D] picked along dimension 1 by ids [B, M] to [B, M, D]."""
    # flow.gather wants an index for each element, and picks and sums them one by one.
    return flow.batch_gather(tokens, ids)
