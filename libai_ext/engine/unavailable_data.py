"""Data that cannot be read for the present: all ranks stop at the same batch, save and exit."""

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


def synchronized(batches: Iterable) -> Iterator:
    """Iterate over the batches of each rank's loader, all of the same length. If one rank cannot
    read its batch, no rank gets that batch: all ranks have taken the same steps, and can save.

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


def save_and_exit(trainer, error: DataUnavailable) -> None:
    """Save a checkpoint and exit with status 74, on all ranks.

    Raises:
        SystemExit: always.
    """
    done, checkpointer = trainer.done, trainer.checkpointer
    left = "repeats the last evaluation" if trainer.unevaluated else "continues from there"
    logger.error(f"{error}; ended after {done} iterations, --resume {left}")
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
    # On the CPU: a GPU would first finish its queued steps.
    count = flow.tensor([float(answer)])
    flow.comm.all_reduce(count)
    return bool(count.numpy()[0])
