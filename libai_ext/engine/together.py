"""Batches that all ranks get, or none."""

from __future__ import annotations

from typing import Iterable, Iterator

import oneflow as flow
from libai.utils import distributed as dist

from libai_ext.errors import DataUnavailable

ELSEWHERE = "another rank cannot read its data"


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
            raise lost or DataUnavailable(ELSEWHERE)
        if batch is None:
            return
        yield batch


def _on_any_rank(answer: bool) -> bool:
    # Not on a GPU, where this would wait for the steps under way.
    count = flow.tensor([float(answer)])
    flow.comm.all_reduce(count)
    return bool(count.numpy()[0])
