"""Data loaders: OneFlow's worker processes around the project's sampling order."""

from __future__ import annotations

from oneflow.utils.data import DataLoader

from libai_ext.data.dataset import KeyedDataset
from libai_ext.data.sampler import EvalSampler, GlobalOrder, TrainSampler
from libai_ext.kernels.threads import available_cpus
from libai_ext.placement import data_parallel_rank, local_process_count


def build_train_loader(
    dataset: KeyedDataset,
    order: GlobalOrder,
    data_parallel_size: int,
    micro_steps: int,
    start_iter: int,
    num_workers: int | None = None,
) -> DataLoader:
    """Endless loader of this rank's share, from iteration ``start_iter`` on."""
    sampler = TrainSampler(order, data_parallel_rank(), data_parallel_size, start_iter, micro_steps)
    return _loader(dataset, sampler, num_workers)


def build_eval_loader(
    dataset: KeyedDataset, micro_batch: int, data_parallel_size: int, num_workers=None
) -> DataLoader:
    """One pass in order over every sample; ``loader.batch_sampler.valid`` counts real rows."""
    sampler = EvalSampler(len(dataset), micro_batch, data_parallel_rank(), data_parallel_size)
    return _loader(dataset, sampler, num_workers)


def _loader(dataset, sampler, num_workers: int | None) -> DataLoader:
    if num_workers is None:
        num_workers = default_workers()
    return DataLoader(
        dataset, batch_sampler=sampler, num_workers=num_workers, collate_fn=dataset.collate
    )


def default_workers() -> int:
    """Worker processes per rank: the machine's cores shared by its ranks, at most 8 each."""
    return max(1, min(8, available_cpus() // local_process_count()))
