"""What a run costs and what it had to leave out, beside LiBai's loss, rate and times."""

from __future__ import annotations

import logging

import oneflow as flow
from libai.engine.trainer import HookBase
from libai.utils import distributed as dist

from libai_ext.compat.placements import placement
from libai_ext.engine.memory import memory_gib
from libai_ext.placement import device_type

logger = logging.getLogger(__name__)


class Gauges(HookBase):
    """Scalars ``images_per_second``, ``data_wait`` (share of the time, of 1) and ``memory_gib``.

    Speeds appear with LiBai's ``time``, which leaves out the first iterations.
    """

    def __init__(self, samples_per_iter: int):
        self.samples_per_iter = samples_per_iter

    def after_step(self) -> None:
        storage = self.trainer.storage
        latest = storage.latest()
        storage.put_scalar("memory_gib", memory_gib())
        if "time" in latest:
            seconds = latest["time"][0]
            storage.put_scalar("images_per_second", self.samples_per_iter / seconds)
            storage.put_scalar("data_wait", latest["data_time"][0] / seconds)


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
