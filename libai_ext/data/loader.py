"""Data loaders: OneFlow's worker processes around the project's sampling order."""

from __future__ import annotations

from typing import Iterator

from libai.data.structures import Instance
from oneflow.utils.data import DataLoader

from libai_ext.data.dataset import KeyedDataset, to_instance
from libai_ext.data.handover import PREFETCH, Handover
from libai_ext.data.host_memory import shares_memory
from libai_ext.data.sampler import EvalSampler, GlobalOrder, TrainSampler
from libai_ext.errors import UserError
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
        collate, unpack = self.dataset.collate, dict
        if self.num_workers > 0:
            handover = Handover(collate, self.num_workers, copy=shares_memory())
            collate, unpack = handover.pack, handover.unpack
        batches = DataLoader(
            self.dataset,
            batch_sampler=self.batch_sampler,
            num_workers=self.num_workers,
            collate_fn=collate,
            prefetch_factor=PREFETCH,
        )
        return _without_traceback(to_instance(unpack(batch)) for batch in batches)


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


def _without_traceback(batches: Iterator[Instance]) -> Iterator[Instance]:
    """A worker's error has the worker's traceback as its text."""
    try:
        yield from batches
    except UserError as error:
        kind = type(error)
        raise kind(str(error).rsplit(f"{kind.__name__}: ", 1)[-1].strip()) from None


def default_workers() -> int:
    """Worker processes per rank: the machine's cores shared by its ranks, at most 8 each."""
    return max(1, min(8, available_cpus() // local_process_count()))
