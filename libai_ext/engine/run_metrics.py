"""Speed, memory, loss scale and skipped steps of a run, and its bad images."""

from __future__ import annotations

import logging
import math

import oneflow as flow
from libai.engine.trainer import HookBase
from libai.utils import distributed as dist

from libai_ext.compat.placements import placement
from libai_ext.engine import metric_names
from libai_ext.engine.memory import memory_gib
from libai_ext.engine.precision import scales_loss
from libai_ext.engine.writers import is_logging_step
from libai_ext.placement import device_type

logger = logging.getLogger(__name__)


class Means:
    """Means of values since the last logging step, by name; the same on every rank."""

    # Not saved: a resumed run may be on another machine.
    _TIMES = (metric_names.STEP_SECONDS, metric_names.DATA_SECONDS)

    def __init__(self):
        self.values: dict[str, list[float]] = {}

    def add(self, name: str, value: float) -> None:
        self.values.setdefault(name, []).append(value)

    def take(self) -> dict[str, float]:
        """Return the means, and reset."""
        means = {name: math.fsum(values) / len(values) for name, values in self.values.items()}
        self.values = {}
        return means

    def state_dict(self) -> dict[str, list[float]]:
        """Lets a resumed run log the same next line as an uninterrupted one."""
        return {name: values for name, values in self.values.items() if name not in self._TIMES}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        self.values = {name: list(values) for name, values in state.items()}


class RunMetrics(HookBase):
    """Records the metrics of each logging step: means since the last one (loss, gradient norm,
    times), speed, memory and, with mixed precision, loss scale and the number of skipped steps.
    :mod:`libai_ext.engine.metric_names` lists them.

    Args:
        periods: see :func:`libai_ext.engine.writers.is_logging_step`.
    """

    def __init__(self, means: Means, samples_per_iter: int, *periods: int):
        self.means = means
        self.samples_per_iter = samples_per_iter
        self.periods = periods

    def after_step(self) -> None:
        if not is_logging_step(self.trainer, self.periods):
            return
        trainer, means = self.trainer, self.means.take()
        scalars = {**means, metric_names.MEMORY: memory_gib()}
        if metric_names.STEP_SECONDS in means:
            seconds = means[metric_names.STEP_SECONDS]
            scalars[metric_names.SPEED] = self.samples_per_iter / seconds
            scalars[metric_names.DATA_WAIT] = means[metric_names.DATA_SECONDS] / seconds
        if scales_loss(trainer.cfg.train):
            scalars[metric_names.LOSS_SCALE] = trainer.steps.loss_scale
            scalars[metric_names.SKIPPED_STEPS] = trainer.iter + 1 - trainer.steps.taken
        trainer.storage.put_scalars(**scalars)


class BadImageReport(HookBase):
    """Logs the number of replaced bad images of all processes, after the last iteration."""

    def after_step(self) -> None:
        if self.trainer.iter + 1 != self.trainer.max_iter:
            return
        drawn, bad = sum_over_data_ranks(self.trainer.dataset.source.totals())
        if bad and dist.is_main_process():
            logger.warning(
                f"bad images: {bad:,} of {drawn:,} samples read ({100 * bad / drawn:.2f} %) were "
                "replaced; log.txt* name each file"
            )


def sum_over_data_ranks(counts: tuple[int, ...]) -> list[int]:
    """One rank counts for each tensor- or pipeline-parallel group: it reads the same samples."""
    util = dist.get_dist_util()
    tensor = util.tensor_parallel_size
    counted = dist.get_rank() < util.data_parallel_size * tensor and dist.get_rank() % tensor == 0
    local = flow.tensor(counts if counted else [0] * len(counts), dtype=flow.int64)
    everyone = placement(device_type(), list(range(dist.get_world_size())))
    summed = local.to(device_type()).to_global(placement=everyone, sbp=flow.sbp.partial_sum)
    return summed.to_global(sbp=flow.sbp.broadcast).to_local().numpy().tolist()
