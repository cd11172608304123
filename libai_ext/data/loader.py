"""Data loaders: batches in the project's sampling order, by worker processes or without."""

from __future__ import annotations

from typing import Iterator

from libai.data.structures import Instance

from libai_ext.data.dataset import KeyedDataset, to_instance
from libai_ext.data.handover import PREFETCH, Handover, Packed
from libai_ext.data.host_memory import shares_memory
from libai_ext.data.sampler import EvalSampler, GlobalOrder, TrainSampler
from libai_ext.data.workers import made_ahead
from libai_ext.kernels.threads import available_cpus
from libai_ext.placement import data_parallel_rank, local_process_count


class Loader:
    """The batches of a sampler, in order; workers start with each pass and end with it.

    Args:
        num_workers: processes that read ahead; 0: none, None: by the machine's cores.
    """

    def __init__(self, dataset: KeyedDataset, batch_sampler, num_workers: int | None = None):
        self.dataset = dataset
        self.batch_sampler = batch_sampler
        self.num_workers = default_workers() if num_workers is None else num_workers

    def __iter__(self) -> Iterator[Instance]:
        return map(to_instance, self._made() if self.num_workers > 0 else self._made_here())

    def _made_here(self) -> Iterator[dict]:
        for keys in self.batch_sampler:
            yield self.dataset.collate(self._samples(keys))

    def _made(self) -> Iterator[dict]:
        handover = Handover(self.dataset.collate, self.num_workers, copy=shares_memory())

        def make(worker: int, number: int, keys) -> Packed:
            return handover.pack(worker, number, self._samples(keys))

        batches = made_ahead(make, self.batch_sampler, self.num_workers, PREFETCH)
        return map(handover.unpack, batches)

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
    """Endless loader of this rank's share, from iteration ``start_iter`` on."""
    sampler = TrainSampler(order, data_parallel_rank(), data_parallel_size, start_iter, micro_steps)
    return Loader(dataset, sampler, num_workers)


def build_eval_loader(
    dataset: KeyedDataset, micro_batch: int, data_parallel_size: int, num_workers=None
) -> Loader:
    """One pass in order over every sample; ``loader.batch_sampler.valid`` counts real rows."""
    sampler = EvalSampler(len(dataset), micro_batch, data_parallel_rank(), data_parallel_size)
    return Loader(dataset, sampler, num_workers)


def default_workers() -> int:
    """Worker processes per rank: the machine's cores shared by its ranks, at most 8 each."""
    return max(1, min(8, available_cpus() // local_process_count()))
