"""All ranks get their next batch, or none does; how a run ends whose data cannot be read."""

from __future__ import annotations

import logging
from typing import Iterable, Iterator

import oneflow as flow
from libai.utils import distributed as dist

from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.errors import DataUnavailable
from libai_ext.launch.exit_report import DATA_UNAVAILABLE, report_failure

logger = logging.getLogger(__name__)

_ELSEWHERE = "another rank cannot read its data"


def together(batches: Iterable) -> Iterator:
    """The batches of each rank's loader, which are as many. Where one rank's data are away for
    good, no rank gets that batch: a step is taken by all or by none, and all can save.

    Raises:
        DataUnavailable: on all ranks.
    """
    if dist.get_world_size() == 1:
        yield from batches
        return
    batches = iter(batches)
    while True:
        lost = None
        try:
            batch = next(batches, None)
        except DataUnavailable as error:
            batch, lost = None, error
        if _on_any_rank(lost is not None):
            raise lost or DataUnavailable(_ELSEWHERE)
        if batch is None:
            return
        yield batch


def save_and_leave(trainer, error: DataUnavailable) -> None:
    """Save what was done, and leave with status 74; on all ranks.

    Raises:
        SystemExit: always.
    """
    done, checkpointer = trainer.done, trainer.checkpointer
    logger.error(f"{error}; ended after {done} iterations, --resume goes on from there")
    if trainer.start_iter < done < trainer.max_iter:
        checkpointer.save(f"model_{done - 1:07d}", done - 1)
        try:
            checkpointer.finish()
        except CheckpointError as failure:
            logger.error(failure)
    if str(error) != _ELSEWHERE:
        report_failure(f"error: {error}\n")
    raise SystemExit(DATA_UNAVAILABLE)


def _on_any_rank(answer: bool) -> bool:
    # Not on a GPU, where this would wait for the steps under way.
    count = flow.tensor([float(answer)])
    flow.comm.all_reduce(count)
    return bool(count.numpy()[0])
