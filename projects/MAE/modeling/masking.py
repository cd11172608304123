"""Which patches are removed (MAE, section 3). B batch, L patches, K kept patches, D width."""

from __future__ import annotations

from typing import Sequence

import numpy as np
import oneflow as flow

from libai_ext.data.sampler import SampleKey
from libai_ext.errors import ConfigError, DataError


class MaskingNoise:
    """Data field: uniform noise [L] float32 of one sample; the K patches with the lowest noise stay
    visible.

    The data workers draw it from the sample's own generator, so a mask depends only on (seed,
    epoch, sample index).
    """

    name = "noise"

    def __init__(self, num_patches: int):
        self.num_patches = num_patches

    def __call__(self, rng: np.random.Generator, key: SampleKey) -> np.ndarray:
        return rng.random(self.num_patches, dtype=np.float32)


class Masking:
    """Data field: like :class:`MaskingNoise`, for masks with a structure.

    A user's own class overrides :meth:`removed` and is set in ``dataloader.*.dataset.fields``.

    Args:
        grid: (rows, columns) of patches; follows from the model.
        num_kept: K; follows from ``model.mask_ratio``.
    """

    name = "noise"

    def __init__(self, grid: Sequence[int], num_kept: int):
        self.grid = tuple(grid)
        self.num_kept = num_kept

    def removed(self, rng: np.random.Generator, key: SampleKey) -> np.ndarray:
        """bool [rows, columns]: True for the L - K patches that are removed.

        Args:
            rng: the sample's own generator, from (seed, epoch, sample index): its numbers are the
                same for any number of processes.
            key: epoch and index of the sample.
        """
        raise NotImplementedError

    def __call__(self, rng: np.random.Generator, key: SampleKey) -> np.ndarray:
        """Noise [L] float32: below 1 for kept patches, at least 1 for removed ones.

        Raises:
            DataError: the mask has a wrong shape, or removes a wrong number of patches.
        """
        removed = np.asarray(self.removed(rng, key))
        rows, columns = self.grid
        count = rows * columns - self.num_kept
        if removed.shape != self.grid or removed.dtype != bool or removed.sum() != count:
            raise DataError(
                f"{type(self).__name__} must remove {count} of {rows} x {columns} patches, as "
                f"model.mask_ratio says, by a bool array; for sample {key.index} it gave "
                f"{removed.dtype} {list(removed.shape)} with {np.count_nonzero(removed)}"
            )
        return rng.random(removed.size, dtype=np.float32) + removed.ravel().astype(np.float32)


class BlockwiseMasking(Masking):
    """Removes rectangles of patches, like BEiT (Bao et al., 2021, arXiv:2106.08254, algorithm 1).

    The size of a block is uniform from ``min_patches`` to the number of patches still to remove.
    Its aspect ratio is from ``min_aspect`` to the inverse, uniform in the logarithm as in BEiT's
    code. BEiT only comes near its ratio. Here all samples keep the same number of patches: if the
    last block is too large, patches at its lower right stay visible.

    Raises:
        ConfigError: fewer patches are to be removed than the smallest block has.
    """

    def __init__(
        self,
        grid: Sequence[int],
        num_kept: int,
        min_patches: int = 16,
        min_aspect: float = 0.3,
    ):
        super().__init__(grid, num_kept)
        removed = self.grid[0] * self.grid[1] - num_kept
        if min_patches > removed:
            raise ConfigError(
                f"BlockwiseMasking: a block has at least min_patches={min_patches} patches, "
                f"model.mask_ratio removes {removed}: set min_patches to less"
            )
        self.min_patches = min_patches
        self.min_aspect = min_aspect

    def removed(self, rng: np.random.Generator, key: SampleKey) -> np.ndarray:
        removed = np.zeros(self.grid, bool)
        missing = removed.size - self.num_kept
        while missing > 0:
            new = self._block(rng, missing) & ~removed
            new.flat[np.flatnonzero(new)[missing:]] = False
            removed |= new
            missing -= int(new.sum())
        return removed

    def _block(self, rng: np.random.Generator, missing: int) -> np.ndarray:
        rows, columns = self.grid
        patches = rng.uniform(self.min_patches, max(self.min_patches, missing))
        bound = -np.log(self.min_aspect)
        aspect = np.exp(rng.uniform(-bound, bound))
        height = min(rows, max(1, round(np.sqrt(patches * aspect))))
        width = min(columns, max(1, round(np.sqrt(patches / aspect))))
        top, left = rng.integers(rows - height + 1), rng.integers(columns - width + 1)
        block = np.zeros(self.grid, bool)
        block[top : top + height, left : left + width] = True
        return block


def num_kept(num_patches: int, mask_ratio: float) -> int:
    """K = int(L * (1 - ratio)), rounded down as in the official code."""
    return int(num_patches * (1 - mask_ratio))


def random_masking(noise: flow.Tensor, keep: int) -> tuple[flow.Tensor, flow.Tensor, flow.Tensor]:
    """Choose the kept patches: those with the lowest noise.

    Args:
        noise: [B, L].
        keep: K.

    Returns:
        ids_keep [B, K]: kept patches in shuffled order; ids_restore [B, L]: position of each patch
        in the shuffled order; mask [B, L] float32: 1 = removed.
    """
    ids_shuffle = flow.argsort(noise, dim=1)
    ids_restore = flow.argsort(ids_shuffle, dim=1)
    mask = (ids_restore >= keep).to(flow.float32)
    return ids_shuffle[:, :keep], ids_restore, mask


def gather_tokens(tokens: flow.Tensor, ids: flow.Tensor) -> flow.Tensor:
    """Pick from tokens [B, N, D] along dimension 1 by ids [B, M]: [B, M, D]."""
    # flow.gather needs an index for each element, and gathers and sums them one by one.
    return flow.batch_gather(tokens, ids)
