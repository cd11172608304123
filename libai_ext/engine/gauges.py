"""What a run costs and what it had to leave out, beside LiBai's loss, rate and times."""

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
from libai_ext.engine.writers import is_line
from libai_ext.placement import device_type

logger = logging.getLogger(__name__)


class Means:
    """Values of the steps since the last logging step, by name; on every rank alike."""

    # Not those of a run that goes on elsewhere.
    _TIMES = (metric_names.STEP_SECONDS, metric_names.DATA_SECONDS)

    def __init__(self):
        self.values: dict[str, list[float]] = {}

    def add(self, name: str, value: float) -> None:
        self.values.setdefault(name, []).append(value)

    def take(self) -> dict[str, float]:
        """The mean of each, and start anew."""
        means = {name: math.fsum(values) / len(values) for name, values in self.values.items()}
        self.values = {}
        return means

    def state_dict(self) -> dict[str, list[float]]:
        """For a resumed run, whose next line is then that of a run left alone."""
        return {name: values for name, values in self.values.items() if name not in self._TIMES}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        self.values = {name: list(values) for name, values in state.items()}


class Gauges(HookBase):
    """At each logging step the means since the one before (loss, gradient norm, times), and what
    follows from them, the memory and, with mixed precision, the loss scale and the steps skipped
    so far: see :mod:`libai_ext.engine.metric_names`.

    Args:
        periods: of the logging steps, see :func:`libai_ext.engine.writers.is_line`.
    """

    def __init__(self, means: Means, samples_per_iter: int, *periods: int):
        self.means = means
        self.samples_per_iter = samples_per_iter
        self.periods = periods

    def after_step(self) -> None:
        if not is_line(self.trainer, self.periods):
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
    """Logs after the last iteration how many bad images all processes replaced."""

    def after_step(self) -> None:
        if self.trainer.iter + 1 != self.trainer.max_iter:
            return
        drawn, bad = _sum_over_data_ranks(self.trainer.dataset.source.totals())
        if bad and dist.is_main_process():
            logger.warning(
                f"bad images: {bad:,} of {drawn:,} samples read ({100 * bad / drawn:.2f} %) were "
                "replaced; log.txt* name each file"
            )


def _sum_over_data_ranks(counts: tuple[int, ...]) -> list[int]:
    """Ranks of one tensor- or pipeline-parallel group read the same samples: one counts."""
    util = dist.get_dist_util()
    tensor = util.tensor_parallel_size
    counted = dist.get_rank() < util.data_parallel_size * tensor and dist.get_rank() % tensor == 0
    local = flow.tensor(counts if counted else [0] * len(counts), dtype=flow.int64)
    everyone = placement(device_type(), list(range(dist.get_world_size())))
    summed = local.to(device_type()).to_global(placement=everyone, sbp=flow.sbp.partial_sum)
    return summed.to_global(sbp=flow.sbp.broadcast).to_local().numpy().tolist()
