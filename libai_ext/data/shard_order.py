"""An order of samples that stays within few shards at a time."""

from __future__ import annotations

from typing import Sequence

import numpy as np


class ShardWindows:
    """Permutes the shards, then all samples within windows of some consecutive shards.

    Like the shuffles of MosaicML Streaming, the order depends on the generator alone, not on the
    number of processes.

    Args:
        sizes: samples of each shard; the samples are numbered shard after shard.
        window: shards in a window.
    """

    def __init__(self, sizes: Sequence[int], window: int):
        self.sizes = np.asarray(sizes, np.int64)
        self.first = np.cumsum(self.sizes) - self.sizes
        self.window = window

    def windows(self, rng: np.random.Generator) -> list[np.ndarray]:
        """The numbers of the shards in each window."""
        shards = rng.permutation(len(self.sizes))
        return [shards[k : k + self.window] for k in range(0, len(shards), self.window)]

    def permutation(self, rng: np.random.Generator) -> np.ndarray:
        """int64 [N]: the samples of an epoch."""
        parts = []
        for shards in self.windows(rng):
            samples = np.concatenate([self.first[s] + np.arange(self.sizes[s]) for s in shards])
            rng.shuffle(samples)
            parts.append(samples)
        return np.concatenate(parts)
