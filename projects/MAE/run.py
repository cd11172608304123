"""One run of the training command, from config to exit."""

from __future__ import annotations

import argparse
import logging
import time
from contextlib import nullcontext
from pathlib import Path
from typing import ContextManager, Sequence

from libai.engine.hooks import IterationTimer
from libai.utils import distributed as dist
from omegaconf import DictConfig, OmegaConf

from libai_ext import device
from libai_ext.checkpoint.checkpointer import from_rank_0, recorded_settings
from libai_ext.config import lazy_config
from libai_ext.config.lazy_config import instantiate
from libai_ext.engine.derive import (
    derive_batch,
    derive_best,
    derive_layout,
    derive_mode,
    refuse_ineffective,
    refuse_unmeasured,
)
from libai_ext.engine.evaluator import build_evaluators
from libai_ext.engine.memory import max_memory
from libai_ext.engine.output_dir import (
    check_output_dir,
    make_output_dir,
    prepare_output_dir,
    similar_run,
    write_record,
)
from libai_ext.engine.setup import log_summary, set_up
from libai_ext.engine.trainer import Trainer
from libai_ext.errors import ConfigError
from libai_ext.launch import deadlines
from libai_ext.launch.exit_report import goes_on
from libai_ext.startup import START_SECONDS
from projects.MAE.modeling.archs import resolve_arch
from projects.MAE.parallel.layout import fit_layout
from projects.MAE.rules import check_heads, read_config
from projects.MAE.weights.adopt import Start, adopt, refuse_two_starts, starting_point
from projects.MAE.weights.load import load_average

logger = logging.getLogger(__name__)

_DEV_RUN = dict(train_iter=4, warmup_iter=1, log_period=1)
# Batches of an evaluation in a trial run.
_TRIAL_BATCHES = 2


class TaskTrainer(Trainer):
    """The trainer of a config's ``task`` (see :mod:`projects.MAE.tasks`)."""

    def __init__(self, cfg: DictConfig, training: bool = True):
        self.task = instantiate(cfg.task)
        super().__init__(cfg, training)

    def build_dataset(self, split: str):
        """The data set of ``data.<split>`` with numbered classes.

        Raises:
            ConfigError, DataError: it cannot be used.
        """
        roots = OmegaConf.select(self.cfg, f"dataloader.{split}.dataset.source.roots", default="")
        if roots is None:
            advice = "" if self.dataset is None else ", or train.evaluation.enabled=False"
            raise ConfigError(f"data.{split} is unset: set it to a list of folders{advice}")
        dataset = super().build_dataset(split)
        self.task.check_data(dataset, self.cfg, f"data.{split}", trained_on=self.dataset)
        return dataset

    def build_checkpointer(self):
        checkpointer = super().build_checkpointer()
        self.task.check_model(self.model, self.cfg)
        checkpointer.record = self.task.record(self.cfg, self.dataset)
        checkpointer.plain["settings"].update(self.task.settings(self.model))
        return checkpointer

    def build_evaluator(self, dataset):
        return self.task.evaluator(dataset)

    def report(self, evaluator, dataset) -> None:
        self.task.report(evaluator, dataset, self.cfg.train.output_dir)

    def build_hooks(self):
        """A task's hooks are next to the timer of the steps: their time is no part of it."""
        hooks = super().build_hooks()
        timers = [place for place, hook in enumerate(hooks) if isinstance(hook, IterationTimer)]
        after = timers[0] + 1
        return [*hooks[:after], *self.task.hooks(self.cfg), *hooks[after:]]


def resolve(
    config_file: str,
    opts: Sequence[str],
    go_on: bool = False,
    evaluate: bool = False,
    notes: list[str] | None = None,
    **train,
) -> DictConfig:
    """Read a config and derive everything that needs no training data.

    Args:
        opts: ``key=value`` overrides.
        go_on, evaluate: which weights the run starts from, see
            :func:`projects.MAE.weights.adopt.starting_point`.
        notes: a sentence is added for each value that does not come from the config.
        train: keys of ``train`` to set after the overrides.
    """
    notes = [] if notes is None else notes
    cfg = read_config(config_file, opts, notes)
    device.choose(cfg.train.device)
    if not evaluate:
        refuse_two_starts(opts)
    start = starting_point(cfg, go_on, evaluate)
    if start is not None:
        notes += adopt(cfg, opts, start)
    derive_layout(cfg)
    refuse_ineffective(cfg, opts)
    notes += derive_mode(cfg, _recorded_mode(cfg, start))
    cfg.train.update(train)
    resolve_arch(cfg.model)
    check_heads(cfg.model)
    if evaluate:  # there are no training steps: their batch size does not matter
        cfg.train.update(global_batch_size=None, train_micro_batch_size=None)
    fit_layout(cfg)
    if not evaluate:
        derive_batch(cfg)
    task = instantiate(cfg.task)
    others = {
        f"{name}/{metric}": way
        for name, evaluator in build_evaluators(cfg).items()
        for metric, way in (evaluator.metrics or task.metrics).items()
    }
    derive_best(cfg, task.metrics, others)
    refuse_unmeasured(cfg, opts)
    task.prepare(cfg)
    return cfg


def _recorded_mode(cfg: DictConfig, start: Start | None) -> bool | None:
    """``graph.enabled`` of the run that this one continues; None: it continues none."""
    if start is None or start.evaluate:
        return None
    run = start.path if start.own else cfg.train.extend_from
    mode = recorded_settings(run).get("graph.enabled") if run else None
    return mode if isinstance(mode, bool) else None


def run(args: argparse.Namespace) -> None:
    """Do what the options ask for.

    Everything that a run needs is opened and checked before its first step, also in a trial.
    """
    deadlines.begin("reading the config", end=START_SECONDS)
    notes: list[str] = []
    cfg = resolve(
        args.config_file,
        args.opts,
        args.resume or from_rank_0(goes_on),
        args.eval_only,
        notes,
        **(_DEV_RUN if args.fast_dev_run else {}),
    )
    if args.print_config:
        if dist.is_main_process():
            print(lazy_config.dump(cfg), end="")
        return
    if args.eval_only:
        _refuse_nothing(cfg)
    given = _given(args) if dist.is_main_process() else None  # starting over may move CONFIG away
    with _output_dir(cfg, args, notes):
        trainer = _build(cfg, notes, args)
        _set_state(trainer, args)
        rows = log_summary(trainer)
        if args.dry_run:
            _dry_run(trainer)
        elif args.eval_only:
            trainer.test_all()
        else:
            write_record(cfg.train.output_dir, given, rows)
            trainer.train()
            unevaluated = trainer.test_set is not None and not cfg.train.evaluation.enabled
            if args.fast_dev_run and unevaluated:
                trainer.test()


def _refuse_nothing(cfg: DictConfig) -> None:
    """
    Raises:
        ConfigError: there is nothing to evaluate.
    """
    if starting_point(cfg, evaluate=True) is None:
        folder = cfg.train.output_dir
        raise ConfigError(
            f"nothing to evaluate: there is no checkpoint in {folder}; set train.output_dir to "
            f"that of a run, or train.load_weight to a file of weights{similar_run(Path(folder))}"
        )


def _output_dir(cfg: DictConfig, args: argparse.Namespace, notes: list[str]) -> ContextManager:
    """Check or make the output directory, as the options require."""
    start, teacher = starting_point(cfg), OmegaConf.select(cfg, "model.target.weights")
    needed = [path for path in (start and start.path, teacher) if path]
    if args.dry_run:
        notes += check_output_dir(cfg, args.resume, args.start_over, needed)
    elif args.eval_only:
        make_output_dir(cfg)
    else:
        return prepare_output_dir(cfg, args.resume, args.start_over, args.fast_dev_run, needed)
    return nullcontext()


def _given(args: argparse.Namespace) -> DictConfig:
    """The config as the user gave it, without derived values. If it is used as CONFIG again, they
    are derived anew, for another number of processes or with other overrides."""
    cfg = read_config(args.config_file, args.opts)
    cfg.train.update(_DEV_RUN if args.fast_dev_run else {})
    return cfg


def _build(cfg: DictConfig, notes: Sequence[str], args: argparse.Namespace) -> TaskTrainer:
    set_up(cfg, log_files=not args.dry_run)
    for note in notes:
        logger.info(note)
    trainer = TaskTrainer(cfg, training=not args.eval_only)
    trainer.keeps = not args.dry_run
    if args.dry_run or args.fast_dev_run:
        trainer.test_batches = _TRIAL_BATCHES
    if args.fast_dev_run and trainer.test_set is None:
        if OmegaConf.select(cfg, "data.test") is None:
            logger.info("nothing is evaluated: data.test is unset")
        else:
            trainer.open_test_set()
    return trainer


def _set_state(trainer: TaskTrainer, args: argparse.Namespace) -> None:
    """Set the weights: from a checkpoint to resume, from weights to start with, or initial ones. An
    evaluation uses ``train.load_weight``, or the output directory's checkpoint."""
    train = trainer.cfg.train
    last = trainer.checkpointer.has_checkpoint()
    go_on = args.resume or from_rank_0(goes_on)
    if last and (go_on or args.eval_only and not train.load_weight):
        trainer.resume()
        return
    if args.resume and not args.eval_only:
        logger.warning(f"no checkpoint yet in {train.output_dir}: the run starts again")
    if train.extend_from and not args.eval_only:
        trainer.extend(train.extend_from)
        return
    trainer.task.start_from(trainer.model, trainer.cfg)
    if trainer.average is None:
        return
    if args.eval_only:
        averages = trainer.average.averages
        load_average(trainer.model, averages, train.load_weight, train.load_grid)
    else:
        trainer.average.reset()


def _dry_run(trainer: TaskTrainer) -> None:
    """Do the first step that the run would do, or begin an evaluation; write nothing."""
    start = time.perf_counter()
    if trainer.order is None:
        trainer.test_all()
        done = "the beginning of the evaluation"
    elif trainer.start_iter >= trainer.max_iter:
        trainer.train()
        return
    else:
        _say_inputs(trainer)
        trainer.cfg.train.log_period = 1
        trainer.max_iter = trainer.start_iter + 1
        trainer.train()
        done = "one step"
        if trainer.test_set is not None:
            done += " and the beginning of the evaluation"
    seconds = time.perf_counter() - start
    logger.info(
        f"{done}: {seconds:.1f} s (with compilation), memory {max_memory()}; nothing was written"
    )


def _say_inputs(trainer: TaskTrainer) -> None:
    """Log the model's input for one sample. Two samples are read, since a mixer mixes pairs."""
    keys = trainer.order.batch(trainer.start_iter)[:2]
    batch = trainer.dataset.collate([trainer.dataset[key] for key in keys])
    for name, value in batch.items():
        logger.info(f"input {name}: {list(value.shape[1:])} {value.dtype} a sample")
