"""``libai.utils.distributed.ttol`` gathers to a CUDA placement on every device.

Symptom: without a GPU, the first logged loss ends the process
(``tton(loss, ranks=[0])`` asks for ``flow.placement("cuda", [0])``).
Affected: LiBai 0.1.1. Retire when ``ttol`` takes the device type from its tensor.
"""

from __future__ import annotations

import oneflow as flow
from libai.utils import distributed as dist

from libai_ext.compat.placements import placement


def ttol(tensor: flow.Tensor, pure_local: bool = False, ranks=None) -> flow.Tensor:
    """Local copy of a global tensor.

    Args:
        pure_local: return this rank's shard; else the whole tensor.
        ranks: gather to these ranks only, on the tensor's own device type.
    """
    if not tensor.is_global:
        return tensor
    where = placement(tensor.placement.type, ranks) if ranks else tensor.placement
    if pure_local:
        return tensor.to_global(placement=where).to_local()
    sbp = [flow.sbp.broadcast] * where.ranks.ndim
    return tensor.to_global(sbp=sbp, placement=where).to_local()


def apply() -> None:
    dist.ttol = ttol
