"""The order of samples: one global stream in batches, for any number of processes."""

from __future__ import annotations

from typing import Iterator, NamedTuple

import numpy as np

from libai_ext.data.shard_order import ShardWindows
from libai_ext.errors import ConfigError

REMAINDERS = ("carry", "drop")


class SampleKey(NamedTuple):
    """One visit of one sample.

    Random decisions about the sample are keyed by (seed, epoch, index), those about its batch by
    (seed, iteration) and its ``position`` in the global batch.
    """

    epoch: int
    index: int  # type: ignore[assignment]  # a tuple has a method of this name
    iteration: int = 0
    position: int = 0


class GlobalOrder:
    """The infinite stream of sample keys: a new permutation of the data set each epoch. It depends
    on these arguments alone.

    Args:
        num_samples: size of the data set.
        global_batch: samples per optimizer step over all processes.
        remainder: ``"carry"``: the stream continues, a batch may hold the end of one epoch and the
            start of the next; ``"drop"``: an epoch ends with its last full batch.
        shards: keeps the permutation within few shards at a time; None: any permutation.

    Raises:
        ConfigError: the data set is empty, or ``drop`` would leave nothing.
    """

    def __init__(
        self,
        num_samples: int,
        global_batch: int,
        seed: int,
        remainder: str = "carry",
        shards: ShardWindows | None = None,
    ):
        if remainder not in REMAINDERS:
            raise ConfigError(
                f"train.epoch_remainder must be one of {REMAINDERS}, not {remainder!r}"
            )
        if num_samples < 1:
            raise ConfigError("the data set is empty")
        if remainder == "drop" and num_samples < global_batch:
            raise ConfigError(
                f"the data set has {num_samples} samples, fewer than one batch of {global_batch}, "
                "and train.epoch_remainder=drop would leave them all out: use a smaller batch or "
                "train.epoch_remainder=carry"
            )
        self.num_samples = num_samples
        self.global_batch = global_batch
        self.seed = seed
        self.shards = shards
        whole = num_samples // global_batch * global_batch
        self.epoch_length = whole if remainder == "drop" else num_samples
        # Of one epoch: its number, and what was computed for it.
        self._permutation = (-1, np.empty(0, np.int64))
        self._windows: tuple[int, list[np.ndarray], np.ndarray] = (-1, [], np.empty(0, np.int64))

    def iterations(self, epochs: float) -> int:
        """Optimizer steps that ``epochs`` take, rounded up."""
        return int(np.ceil(epochs * self.epoch_length / self.global_batch))

    def batch(self, iteration: int) -> list[SampleKey]:
        """The global batch of an iteration, in order."""
        start = iteration * self.global_batch
        return [self._key(position) for position in range(start, start + self.global_batch)]

    def _key(self, position: int) -> SampleKey:
        epoch, offset = divmod(position, self.epoch_length)
        if self._permutation[0] != epoch:
            self._permutation = (epoch, self._permuted(self._generator(epoch)))
        index = int(self._permutation[1][offset])
        return SampleKey(epoch, index, *divmod(position, self.global_batch))

    def shards_at(self, iteration: int) -> tuple[list[int], list[int]]:
        """The shards of the window in which an iteration begins, and those of the next window."""
        assert self.shards is not None
        epoch, offset = divmod(iteration * self.global_batch, self.epoch_length)
        if self._windows[0] != epoch:
            windows = self.shards.windows(self._generator(epoch))
            ends = np.cumsum([self.shards.sizes[window].sum() for window in windows])
            windows += self.shards.windows(self._generator(epoch + 1))[:1]
            self._windows = (epoch, windows, ends)
        _, windows, ends = self._windows
        here = int(np.searchsorted(ends, offset, "right"))
        return windows[here].tolist(), windows[here + 1].tolist()

    def _generator(self, epoch: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch])

    def _permuted(self, rng: np.random.Generator) -> np.ndarray:
        if self.shards is None:
            return rng.permutation(self.num_samples)
        return self.shards.permutation(rng)


class TrainSampler:
    """Batch sampler of one data-parallel rank: contiguous shares of each global batch.

    Rank r of D takes samples [r * G / D, (r + 1) * G / D) of the G in a batch, as a global tensor
    split over D ranks does. It takes them in ``micro_steps`` pieces (gradient accumulation of eager
    mode; ``nn.Graph`` splits the whole share itself, in the same way).
    """

    def __init__(
        self, order: GlobalOrder, rank: int, ranks: int, start_iter: int = 0, micro_steps: int = 1
    ):
        self.order = order
        self.start_iter = start_iter
        self.share = order.global_batch // ranks
        self.first = rank * self.share
        self.micro_batch = self.share // micro_steps

    def __iter__(self) -> Iterator[list[SampleKey]]:
        iteration = self.start_iter
        while True:
            keys = self.order.batch(iteration)
            for start in range(self.first, self.first + self.share, self.micro_batch):
                yield keys[start : start + self.micro_batch]
            iteration += 1


class EvalSampler:
    """Batch sampler of one data-parallel rank: every sample once, in order.

    The last global batch is padded with copies of the last sample: the first ``valid(i)`` rows of
    batch i are real samples, on any number of ranks.
    """

    def __init__(self, num_samples: int, micro_batch: int, rank: int, ranks: int):
        self.num_samples = num_samples
        self.global_batch = micro_batch * ranks
        self.micro_batch = micro_batch
        self.rank = rank

    def __len__(self) -> int:
        return -(-self.num_samples // self.global_batch)

    def valid(self, batch: int) -> int:
        """How many rows of global batch number ``batch`` are real samples."""
        return min(self.global_batch, self.num_samples - batch * self.global_batch)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for batch in range(len(self)):
            first = batch * self.global_batch + self.rank * self.micro_batch
            positions = range(first, first + self.micro_batch)
            yield [SampleKey(0, min(p, self.num_samples - 1)) for p in positions]
