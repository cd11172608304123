"""LiBai's trainer with this project's data order, checkpoints and log files."""

from __future__ import annotations

import logging
import time
from typing import Any

import oneflow as flow
from libai.engine.trainer import TrainerBase
from libai.utils import distributed as dist
from omegaconf import DictConfig

from libai_ext.checkpoint.checkpointer import SCHEDULE, Checkpointer, latest_checkpoint
from libai_ext.config.lazy_config import fresh, instantiate
from libai_ext.config.targets import check_targets
from libai_ext.data.loader import build_train_loader
from libai_ext.data.sampler import GlobalOrder
from libai_ext.data.sharded import shard_windows
from libai_ext.engine import metric_names, resume_check
from libai_ext.engine.derive import derive_schedule
from libai_ext.engine.evaluating_trainer import EvaluatingTrainer
from libai_ext.engine.evaluator import build_evaluators
from libai_ext.engine.hooks import build_hooks, set_schedule
from libai_ext.engine.loggers.logger import build_loggers
from libai_ext.engine.nonfinite import NonFiniteMonitor, refuse_nonfinite
from libai_ext.engine.precision import scales_loss
from libai_ext.engine.run_metrics import Means
from libai_ext.engine.saved_progress import check_progress
from libai_ext.engine.steps import WARM_UP, EagerSteps, GraphSteps
from libai_ext.engine.unavailable_data import save_and_exit, synchronized
from libai_ext.engine.writers import is_logging_step
from libai_ext.errors import ConfigError, DataError, DataUnavailable
from libai_ext.optim.ema import WeightAverage

logger = logging.getLogger(__name__)


class Trainer(EvaluatingTrainer):
    """One iteration is one optimizer step, in graph and in eager mode.

    LiBai's trainer counts micro-batches in eager mode, and starts its data workers before it knows
    where to resume. So this class decides what is built in which order; LiBai builds each part.

    Attributes:
        keeps: whether files are written; False for a dry run.
        unavailable: why all ranks have to end after this iteration, or None.
    """

    keeps = True

    def __init__(self, cfg: DictConfig, training: bool = True):
        """
        Args:
            training: False for evaluation alone: no training data and no optimizer.
        """
        TrainerBase.__init__(self)
        self.cfg = cfg
        # None for a trainer that does not need them.
        self.dataset: Any = None
        self.order: Any = None
        self.optimizer: Any = None
        self.lr_scheduler: Any = None
        steps = GraphSteps if cfg.graph.enabled else EagerSteps
        self.steps = steps(self, NonFiniteMonitor(self, cfg.train.max_nonfinite_steps))
        self.means = Means()
        self._batches: Any = None
        self._waited = 0.0  # for data, seconds in this step
        self.unavailable: DataUnavailable | None = None
        self.unevaluated = []
        if training:
            self._build_order()
        if not training or cfg.train.evaluation.enabled:
            self.open_test_set()
        self.evaluators = build_evaluators(cfg)
        for name, evaluator in self.evaluators.items():
            try:
                evaluator.open(self)
            except (ConfigError, DataError) as error:
                raise type(error)(f"train.evaluation.evals.{name}: {error}") from None
        self.loggers = build_loggers(cfg) if training and dist.is_main_process() else {}
        flow.manual_seed(cfg.train.seed)
        self.model = self.build_model(cfg)
        ema = cfg.train.ema
        self.average = WeightAverage(self.model, ema.decay) if ema.enabled else None
        if training:
            self.optimizer = self.build_optimizer(cfg, self.model)
            self.lr_scheduler = self.build_lr_scheduler(cfg, self.optimizer)
        self.checkpointer = self.build_checkpointer()

    def _build_order(self) -> None:
        train = self.cfg.train
        self.dataset = self.build_dataset("train")
        shards = shard_windows(self.dataset.source, train.shard_window)
        if shards is not None:
            train.shard_window = shards.window
        self.order = GlobalOrder(
            len(self.dataset), train.global_batch_size, train.seed, train.epoch_remainder, shards
        )
        derive_schedule(self.cfg, self.order)
        self.max_iter = train.train_iter
        self.global_batch_size = train.global_batch_size

    @classmethod
    def build_model(cls, cfg: DictConfig):
        return instantiate(fresh(cfg.model))

    @classmethod
    def build_optimizer(cls, cfg: DictConfig, model):
        node = fresh(cfg.optim)
        node.params.model = model
        return instantiate(node)

    @classmethod
    def build_lr_scheduler(cls, cfg: DictConfig, optimizer):
        node = fresh(cfg.train.scheduler)
        node.optimizer = optimizer
        return instantiate(node)

    @classmethod
    def build_graph(cls, cfg: DictConfig, *args, **kwargs):
        check_targets(cfg.graph)
        graph, amp = super().build_graph(cfg, *args, **kwargs), cfg.train.amp
        if scales_loss(cfg.train):
            graph.config.enable_amp(True)  # otherwise LiBai evaluates in float32
            if graph.is_train:
                graph.scale_loss(amp.init_scale, amp.growth_interval)
        return graph

    def build_checkpointer(self) -> Checkpointer:
        """In graph mode the graph holds the optimizer's state. The eager schedule is saved too: the
        log shows its rate."""
        items: dict[str, Any] = {}
        if self.average is not None:
            items["ema"] = self.average
        if self.cfg.graph.enabled:
            cfg = self.cfg.copy()
            cfg.graph = fresh(cfg.graph)
            self.graph_eval = self.build_graph(cfg, self.model, is_train=False)
        if self.optimizer is not None:
            items[SCHEDULE] = self.lr_scheduler
            if self.cfg.graph.enabled:
                self.graph_train = self.build_graph(
                    cfg, self.model, self.optimizer, self.lr_scheduler, is_train=True
                )
                items["graph"] = self.graph_train
            else:
                items["optimizer"] = self.optimizer
        train = self.cfg.train
        checkpointer = Checkpointer(
            self.model, train.output_dir, max_to_keep=train.checkpointer.max_to_keep, **items
        )
        checkpointer.plain["settings"] = resume_check.settings(self.cfg, self.dataset)
        checkpointer.before_save = self.flush_steps
        return checkpointer

    def resume(self) -> None:
        """Load the latest valid checkpoint of the output directory, to continue or evaluate it.

        Raises:
            ConfigError: the config contradicts the checkpoint.
            CheckpointError: there is none, all are damaged, or its ``progress.json`` is no run's.
        """
        checkpointer = self.checkpointer
        path = checkpointer.get_checkpoint_file()
        progress = checkpointer.progress(path)
        check_progress(progress, path)
        # An evaluation does not depend on how the model was trained.
        prefix = "" if self.optimizer is not None else "model."
        resume_check.check(
            progress.get("settings", {}), checkpointer.plain["settings"], path, prefix
        )
        checkpointer.load(path)
        refuse_nonfinite(self.model, path)
        checkpointer.plain["best"] = progress.get("best")
        self.start_iter = progress["iteration"] + 1
        self.unevaluated = progress.get("unevaluated", [])
        if self.optimizer is not None:
            self.steps.load_state_dict(progress.get("steps", {}), self.lr_scheduler.last_step)
            self.means.load_state_dict(progress.get("since_last_line", {}))

    def extend(self, run: str) -> None:
        """Continue a run of another output directory under the schedule of this one: with its
        weights, optimizer state and iterations.

        Args:
            run: its output directory, or one of its checkpoints.

        Raises:
            ConfigError: the runs differ in more than their schedules, or this one is not longer.
            CheckpointError: there is no checkpoint, or it is damaged.
        """
        checkpointer = self.checkpointer
        path = latest_checkpoint(run)
        progress = checkpointer.progress(path)
        check_progress(progress, path)
        settings = progress.get("settings", {}), checkpointer.plain["settings"]
        changed = resume_check.check(*settings, path, free=resume_check.SCHEDULE)
        done = progress["iteration"] + 1
        if done >= self.max_iter:
            raise ConfigError(
                f"train.extend_from: {path} has {done} iterations, this run {self.max_iter}: set "
                "train.train_epoch or train.train_iter to the length of both together"
            )
        taken = checkpointer.steps_taken(path)
        checkpointer.load(path, [name for name in checkpointer.checkpointables if name != SCHEDULE])
        refuse_nonfinite(self.model, path)
        set_schedule(self.lr_scheduler, taken)
        self.start_iter = done
        # max_nonfinite_steps is for each run.
        self.steps.load_state_dict({**progress.get("steps", {}), "faults": 0}, taken)
        logger.info(f"extends {path}, from iteration {done} to {self.max_iter}")
        for text in changed:
            logger.info(f"extends {path}: {text}")

    def train(self) -> None:
        """Run from ``start_iter`` to ``max_iter``.

        Raises:
            SystemExit: with status 74, on all ranks, after a save: the data cannot be read for the
                present.
        """
        self.done = self.start_iter
        try:
            if self.start_iter >= self.max_iter:
                if not self.repeat_evaluations():
                    done = f"{self.start_iter} of {self.max_iter} iterations are done"
                    logger.info(f"nothing to do: {done}")
                return
            self.register_hooks(self.build_hooks())
            self.model.train()
            super().train()
        except DataUnavailable as error:
            save_and_exit(self, error)

    def before_step(self) -> None:
        """LiBai increments ``storage.iter`` in the middle of a step: the metrics of this step would
        get the number of the step before."""
        self.storage.iter = self.iter + 1
        super().before_step()

    def after_step(self) -> None:
        super().after_step()
        self.done = self.iter + 1
        if self.unavailable is not None:
            raise self.unavailable

    def run_step(self) -> None:
        start = time.perf_counter()
        if self._batches is None:
            self._batches = self._build_batches()
        self._waited = 0.0
        self.steps.run()
        if self.average is not None and not self.steps.skipped:
            self.average.update()
        # Graphs are compiled and data workers started in the first steps.
        if self.iter >= self.start_iter + WARM_UP:
            self.means.add(metric_names.STEP_SECONDS, time.perf_counter() - start)
            self.means.add(metric_names.DATA_SECONDS, self._waited)

    def flush_due(self) -> bool:
        """Whether logging, saving or evaluation needs the results of all steps after this one."""
        train = self.cfg.train
        periods = [train.log_period, train.checkpointer.period]
        periods += [period for period, _ in self.evaluations()]
        return self.iter + 1 - self.start_iter == WARM_UP or is_logging_step(self, periods)

    def flush_steps(self) -> None:
        """Read the results of all steps, so that a checkpoint is of one iteration."""
        self.steps.flush()
        set_schedule(self.lr_scheduler, self.steps.taken)
        self.checkpointer.plain["steps"] = self.steps.state_dict()
        self.checkpointer.plain["since_last_line"] = self.means.state_dict()
        self.checkpointer.plain["unevaluated"] = self.unevaluated

    def _build_batches(self):
        train = self.cfg.train
        steps = 1 if self.cfg.graph.enabled else train.num_accumulation_steps
        return synchronized(
            build_train_loader(
                self.dataset,
                self.order,
                train.dist.data_parallel_size,
                steps,
                self.start_iter,
                self.cfg.dataloader.train.num_workers,
            )
        )

    def next_batch(self) -> dict:
        """The next (micro-)batch, on the device. Only a step may ask for it."""
        start = time.perf_counter()
        batch = self.get_batch(next(self._batches))
        self._waited += time.perf_counter() - start
        return batch

    def build_hooks(self):
        return build_hooks(self)
