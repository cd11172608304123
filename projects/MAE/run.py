"""One run of the command line, from config to exit."""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from typing import Sequence

from libai.utils import distributed as dist
from omegaconf import DictConfig

from libai_ext import config, device, watch
from libai_ext.config import instantiate
from libai_ext.engine.derive import derive_batch, derive_layout, refuse_idle
from libai_ext.engine.memory import fullest
from libai_ext.engine.output_dir import prepare_output_dir, write_record
from libai_ext.engine.setup import log_summary, set_up
from libai_ext.engine.trainer import Trainer
from libai_ext.errors import ConfigError
from libai_ext.failure import restarted
from libai_ext.startup import START_SECONDS
from projects.MAE.layout import fit_layout
from projects.MAE.modeling.archs import resolve_arch
from projects.MAE.rules import check_heads, read_config
from projects.MAE.weights.adopt import adopt, starting_point

logger = logging.getLogger(__name__)

_DEV_RUN = dict(train_iter=4, warmup_iter=1, log_period=1)


class TaskTrainer(Trainer):
    """The trainer of a config's ``task`` (see :mod:`projects.MAE.tasks`)."""

    def __init__(self, cfg: DictConfig, training: bool = True):
        self.task = instantiate(cfg.task)
        super().__init__(cfg, training)

    def build_dataset(self, split: str):
        dataset = super().build_dataset(split)
        self.task.check_data(dataset, self.cfg, f"data.{split}", trained_on=self.dataset)
        return dataset

    def build_checkpointer(self):
        checkpointer = super().build_checkpointer()
        checkpointer.record = self.task.record(self.cfg, self.dataset)
        return checkpointer

    def build_evaluator(self, dataset):
        return self.task.evaluator(dataset)

    def report(self, evaluator, dataset) -> None:
        self.task.report(evaluator, dataset, self.cfg.train.output_dir)

    def build_hooks(self):
        timer, *others = super().build_hooks()
        return [timer, *self.task.hooks(self.cfg), *others]


def resolve(
    config_file: str,
    opts: Sequence[str],
    go_on: bool = False,
    evaluate: bool = False,
    notes: list[str] | None = None,
    **train,
) -> DictConfig:
    """A config with everything derived that needs no training data.

    Args:
        opts: ``key=value`` overrides.
        go_on, evaluate: which weights it starts from, see
            :func:`projects.MAE.weights.adopt.starting_point`.
        notes: gets what the weights say of the model, a sentence each.
        train: keys of ``train`` to be set after the overrides.
    """
    cfg = read_config(config_file, opts)
    device.choose(cfg.train.device)
    start = starting_point(cfg, go_on, evaluate)
    if start is not None:
        taken = adopt(cfg, opts, start)
        (notes if notes is not None else []).extend(taken)
    derive_layout(cfg)
    refuse_idle(cfg, opts)
    cfg.train.update(train)
    resolve_arch(cfg.model)
    check_heads(cfg.model)
    fit_layout(cfg)
    derive_batch(cfg)
    instantiate(cfg.task).prepare(cfg)
    return cfg


def run(args: argparse.Namespace) -> None:
    """Do what the options say."""
    watch.expect("reading the config", end=START_SECONDS)
    notes: list[str] = []
    cfg = resolve(
        args.config_file,
        args.opts,
        args.resume or restarted(),
        args.eval_only,
        notes,
        **(_DEV_RUN if args.fast_dev_run else {}),
    )
    if args.print_config:
        if dist.is_main_process():
            print(config.dump(cfg), end="")
        return
    if args.dry_run:
        with tempfile.TemporaryDirectory() as scratch:
            cfg.train.output_dir = scratch
            _dry_run(_build(cfg, notes))
        return
    given = _given(args) if dist.is_main_process() else None  # starting over may move CONFIG away
    if args.eval_only:
        trainer = _prepared(cfg, notes, args)
        log_summary(trainer)
        trainer.test()
        return
    with prepare_output_dir(cfg, args.resume, args.start_over, args.fast_dev_run):
        trainer = _prepared(cfg, notes, args)
        write_record(cfg.train.output_dir, given, log_summary(trainer))
        trainer.train()
        if args.fast_dev_run:
            trainer.test(max_batches=2)


def _prepared(cfg: DictConfig, notes: Sequence[str], args: argparse.Namespace) -> TaskTrainer:
    """A trainer with its weights, about to do what the options say."""
    trainer = _build(cfg, notes, training=not args.eval_only)
    _set_state(trainer, args)
    return trainer


def _given(args: argparse.Namespace) -> DictConfig:
    """What the user asked for. What follows from it follows anew when it is given as CONFIG, for
    another number of processes or with other overrides."""
    cfg = read_config(args.config_file, args.opts)
    cfg.train.update(_DEV_RUN if args.fast_dev_run else {})
    return cfg


def _build(cfg: DictConfig, notes: Sequence[str], training: bool = True) -> TaskTrainer:
    set_up(cfg, instantiate(cfg.task).pipeline_layers(cfg.model))
    for note in notes:
        logger.info(note)
    return TaskTrainer(cfg, training)


def _set_state(trainer: TaskTrainer, args: argparse.Namespace) -> None:
    """Where the weights come from: a checkpoint to go on from, weights to start from, the
    initialisation. An evaluation is of ``train.load_weight``, or of the output directory's
    checkpoint.

    Raises:
        ConfigError: there is nothing to evaluate.
    """
    train = trainer.cfg.train
    last = trainer.checkpointer.has_checkpoint()
    if args.eval_only and not (train.load_weight or last):
        raise ConfigError(
            f"nothing to evaluate: there is no checkpoint in {train.output_dir}; set "
            "train.output_dir to that of a run, or train.load_weight to a file of weights"
        )
    if last and (args.resume or restarted() or args.eval_only and not train.load_weight):
        trainer.resume()
        return
    if args.resume and not args.eval_only:
        logger.warning(f"no checkpoint yet in {train.output_dir}: the run starts again")
    trainer.task.start_from(trainer.model, trainer.cfg)
    if trainer.average is not None:
        trainer.average.reset()


def _dry_run(trainer: TaskTrainer) -> None:
    log_summary(trainer)
    cfg = trainer.cfg
    cfg.train.log_period = 1
    trainer.max_iter = 1
    for name, value in trainer.dataset[trainer.order.batch(0)[0]].items():
        logger.info(f"input {name}: {list(value.shape)} {value.dtype} a sample")
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    logger.info(f"one step: {seconds:.1f} s (compilation included), memory {fullest()}")
