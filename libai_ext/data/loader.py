"""Data loaders: batches in the project's sampling order, with or without worker processes."""

from __future__ import annotations

from typing import Iterator

from libai.data.structures import Instance

from libai_ext.data.dataset import KeyedDataset, to_instance
from libai_ext.data.host_memory import shares_memory
from libai_ext.data.sampler import EvalSampler, GlobalOrder, TrainSampler
from libai_ext.data.sharded import fetch_ahead
from libai_ext.data.shared_batches import PREFETCH, Packed, SharedBatches
from libai_ext.data.workers import prefetch
from libai_ext.kernels.threads import available_cpus
from libai_ext.placement import data_parallel_rank, local_process_count


class Loader:
    """The batches of a sampler, in order. Workers run for one pass.

    Args:
        num_workers: processes that prefetch; 0: none; None: see :func:`default_workers`.
    """

    def __init__(self, dataset: KeyedDataset, batch_sampler, num_workers: int | None = None):
        self.dataset = dataset
        self.batch_sampler = batch_sampler
        self.num_workers = default_workers() if num_workers is None else num_workers

    def __iter__(self) -> Iterator[Instance]:
        return map(to_instance, self._prefetched() if self.num_workers else self._in_process())

    def _in_process(self) -> Iterator[dict]:
        for keys in self.batch_sampler:
            yield self.dataset.collate(self._samples(keys))

    def _prefetched(self) -> Iterator[dict]:
        order = getattr(self.batch_sampler, "order", None)
        shared = SharedBatches(self.dataset.collate, self.num_workers, copy=shares_memory())

        def make(worker: int, number: int, keys) -> Packed:
            if order is not None and order.shards is not None:
                fetch_ahead(self.dataset.source, order, keys[0].iteration)
            return shared.pack(worker, number, self._samples(keys))

        batches = prefetch(make, self.batch_sampler, self.num_workers, PREFETCH)
        return map(shared.unpack, batches)

    def _samples(self, keys) -> list[dict]:
        return [self.dataset[key] for key in keys]


def build_train_loader(
    dataset: KeyedDataset,
    order: GlobalOrder,
    data_parallel_size: int,
    micro_steps: int,
    start_iter: int,
    num_workers: int | None = None,
) -> Loader:
    """Endless loader of this rank's share, starting at iteration ``start_iter``."""
    sampler = TrainSampler(order, data_parallel_rank(), data_parallel_size, start_iter, micro_steps)
    return Loader(dataset, sampler, num_workers)


def build_eval_loader(
    dataset: KeyedDataset, micro_batch: int, data_parallel_size: int, num_workers=None
) -> Loader:
    """One pass over every sample, in order; ``loader.batch_sampler.valid`` gives the number of real
    rows."""
    sampler = EvalSampler(len(dataset), micro_batch, data_parallel_rank(), data_parallel_size)
    return Loader(dataset, sampler, num_workers)


def default_workers() -> int:
    """Worker processes per rank: the machine's cores shared by its ranks, at most 8 each."""
    return max(1, min(8, available_cpus() // local_process_count()))
