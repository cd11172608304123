"""One run of the command line, from config to exit."""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from typing import Sequence

import psutil
from libai.utils import distributed as dist
from omegaconf import DictConfig

from libai_ext import config
from libai_ext.engine.derive import derive_batch, derive_layout
from libai_ext.engine.evaluation import MeanOf
from libai_ext.engine.setup import log_summary, set_up
from libai_ext.engine.trainer import Trainer
from libai_ext.layers.patch_embedding import grid_of
from projects.MAE.modeling.archs import resolve_arch
from projects.MAE.weights.load import load_weights

logger = logging.getLogger(__name__)

_DEV_RUN = dict(train_iter=4, warmup_iter=1, log_period=1)


class PretrainTrainer(Trainer):
    """Evaluates the reconstruction loss, with masks that are the same at each evaluation."""

    def build_evaluator(self) -> MeanOf:
        return MeanOf(loss="sample_losses")


def resolve(config_file: str, opts: Sequence[str], **train) -> DictConfig:
    """A config with everything derived that needs no data.

    Args:
        opts: ``key=value`` overrides.
        train: keys of ``train`` to be set after them.
    """
    cfg = config.override(config.load(config_file), opts)
    cfg.train.update(train)
    derive_layout(cfg)
    derive_batch(cfg)
    resolve_arch(cfg.model)
    rows, columns = grid_of(cfg.model.img_size, cfg.model.patch_size)
    for split in ("train", "test"):
        if cfg.dataloader.get(split) is not None:
            cfg.dataloader[split].dataset.fields[0].num_patches = rows * columns
    return cfg


def run(args: argparse.Namespace) -> None:
    """Do what the options say."""
    cfg = resolve(args.config_file, args.opts, **(_DEV_RUN if args.fast_dev_run else {}))
    if args.print_config:
        if dist.is_main_process():
            print(config.dump(cfg), end="")
        return
    if args.dry_run:
        with tempfile.TemporaryDirectory() as scratch:
            cfg.train.output_dir = scratch
            _dry_run(_build(cfg))
        return
    trainer = _build(cfg)
    _set_state(trainer, args)
    log_summary(trainer)
    if args.eval_only:
        trainer.test()
        return
    trainer.train()
    if args.fast_dev_run:
        trainer.test(max_batches=2)


def pipeline_layers(model: DictConfig) -> int:
    """Encoder and decoder layers form one pipeline."""
    return model.depth + model.decoder_depth


def _build(cfg: DictConfig) -> PretrainTrainer:
    set_up(cfg, pipeline_layers(cfg.model))
    return PretrainTrainer(cfg)


def _set_state(trainer: PretrainTrainer, args: argparse.Namespace) -> None:
    """Where the weights come from: a checkpoint to go on from, weights to start from, the
    output directory's checkpoint when there is only something to evaluate, the initialisation.
    """
    load_weight = trainer.cfg.train.load_weight
    if args.resume:
        trainer.resume()
    elif load_weight:
        load_weights(trainer.model, load_weight)
    elif args.eval_only and trainer.checkpointer.has_checkpoint():
        trainer.resume()
    elif args.eval_only:
        logger.warning("neither train.load_weight nor a checkpoint: evaluating untrained weights")


def _dry_run(trainer: PretrainTrainer) -> None:
    log_summary(trainer)
    cfg = trainer.cfg
    cfg.train.log_period = 1
    trainer.max_iter = 1
    for name, value in trainer.dataset[trainer.order.batch(0)[0]].items():
        logger.info(f"input {name}: {list(value.shape)} {value.dtype} a sample")
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    memory = psutil.Process().memory_info().rss / 2**30
    logger.info(f"one step: {seconds:.1f} s (compilation included), memory {memory:.2f} GiB")
