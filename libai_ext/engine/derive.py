"""Values that follow from others: computed once, after all overrides."""

from __future__ import annotations

import os

from omegaconf import DictConfig

from libai_ext.data.sampler import GlobalOrder
from libai_ext.errors import ConfigError


def derive_layout(cfg: DictConfig) -> None:
    """Fill the data-parallel size from the number of processes.

    Raises:
        ConfigError: the product of the three sizes is not the number of processes.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    layout = cfg.train.dist
    model_parallel = layout.tensor_parallel_size * layout.pipeline_parallel_size
    if layout.data_parallel_size is None:
        layout.data_parallel_size = max(1, world // model_parallel)
    product = layout.data_parallel_size * model_parallel
    if product != world:
        raise ConfigError(
            f"train.dist: data {layout.data_parallel_size} x tensor "
            f"{layout.tensor_parallel_size} x pipeline {layout.pipeline_parallel_size} "
            f"= {product} processes, but {world} are running"
        )


def derive_batch(cfg: DictConfig) -> None:
    """Complete micro batch, accumulation and global batch, then the learning rate.

    Raises:
        ConfigError: sizes that do not multiply, or no learning rate.
    """
    train = cfg.train
    ranks = train.dist.data_parallel_size
    steps = train.num_accumulation_steps or 1
    if train.global_batch_size is None:
        if train.train_micro_batch_size is None:
            raise ConfigError("set train.train_micro_batch_size or train.global_batch_size")
        train.global_batch_size = train.train_micro_batch_size * steps * ranks
    elif train.global_batch_size % (steps * ranks):
        raise ConfigError(
            f"train.global_batch_size {train.global_batch_size} is not divisible by "
            f"train.num_accumulation_steps {steps} x data-parallel size {ranks}"
        )
    train.num_accumulation_steps = steps
    train.train_micro_batch_size = train.global_batch_size // (steps * ranks)
    if cfg.optim.lr is None:
        if train.base_lr is None:
            raise ConfigError("set train.base_lr (lr = base_lr x global batch / 256) or optim.lr")
        cfg.optim.lr = train.base_lr * train.global_batch_size / 256


def derive_schedule(cfg: DictConfig, order: GlobalOrder) -> None:
    """Turn epochs into iterations of the data set at hand.

    Raises:
        ConfigError: the length of the run is not given.
    """
    train = cfg.train
    if train.train_iter is None:
        if train.train_epoch is None:
            raise ConfigError("set train.train_epoch or train.train_iter")
        train.train_iter = order.iterations(train.train_epoch)
    if train.warmup_iter is None:
        train.warmup_iter = order.iterations(train.warmup_epoch)
    train.scheduler.max_iter = train.train_iter
    train.scheduler.warmup_iter = train.warmup_iter
