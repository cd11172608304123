"""The hooks of a training run."""

from __future__ import annotations

from functools import partial

from libai.engine import hooks
from libai.utils import distributed as dist

from libai_ext.config.lazy_config import plain
from libai_ext.engine import metric_names
from libai_ext.engine.checkpointing import Checkpointing, Evaluation
from libai_ext.engine.loggers.background import BackgroundWriter
from libai_ext.engine.loggers.logger import Run
from libai_ext.engine.progress import Progress
from libai_ext.engine.run_metrics import BadImageReport, RunMetrics
from libai_ext.engine.setup import summary
from libai_ext.engine.signals import SaveOnSignal
from libai_ext.engine.watchdog import StepWatch
from libai_ext.engine.writers import LoggingStepWriter, writers


def build_hooks(trainer) -> list[hooks.HookBase]:
    """The hooks of ``trainer``, in the order in which they run."""
    train = trainer.cfg.train
    evaluation = train.evaluation
    built = [StepWatch(train.watchdog.factor, train.watchdog.min_seconds)]
    built += [hooks.IterationTimer(), Schedule(), BadImageReport()]
    periods = [train.log_period]
    for period, name in trainer.evaluations():
        periods.append(period)
        decides = trainer.keeps and (evaluation.eval_metric or "").rpartition("/")[0] == name
        built.append(
            Evaluation(
                trainer.checkpointer,
                partial(trainer.run_evaluator, name) if name else trainer.test,
                period,
                evaluation.eval_metric if decides else None,
                evaluation.eval_mode,
                f"{name}/" if name else "",
            )
        )
    built.append(RunMetrics(trainer.means, trainer.global_batch_size, *periods))
    if dist.is_main_process():
        if trainer.keeps:
            files = writers(train.output_dir, trainer.start_iter)
            built.append(LoggingStepWriter([*files, *_background(trainer)], *periods))
        built.append(Progress(train.log_period))
    if trainer.keeps:
        checkpointer = trainer.checkpointer
        built.append(Checkpointing(checkpointer, train.checkpointer.period, train.log_period))
        if train.save_on_signal:
            built.append(SaveOnSignal(checkpointer))  # last, since it may end the run
    return built


def _background(trainer) -> list[BackgroundWriter]:
    """Writers of the loggers."""
    train = trainer.cfg.train
    run = Run(train.output_dir, plain(trainer.cfg), summary(trainer))
    span = trainer.start_iter, trainer.max_iter
    return [BackgroundWriter(name, one, run, *span) for name, one in trainer.loggers.items()]


class Schedule(hooks.LRScheduler):
    """Logs the rate of the last optimizer step, then sets that of the next one."""

    def after_step(self) -> None:
        taken = self.trainer.steps.taken
        if self.scheduler.last_step != taken - 1:  # steps were skipped
            set_schedule(self.scheduler, max(taken - 1, 0))
        lr = self.scheduler.get_last_lr()[self._best_param_group_id]
        self.trainer.storage.put_scalar(metric_names.LEARNING_RATE, lr, smoothing_hint=False)
        set_schedule(self.scheduler, taken)


def set_schedule(scheduler, step: int) -> None:
    """Set the rate of optimizer step ``step``, counted from 0."""
    scheduler.last_step = step - 1
    scheduler.step()
