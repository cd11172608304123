"""Number of micro-batches that a pipeline stage buffers for its backward passes."""

from __future__ import annotations

import re

from oneflow.core.job.job_pb2 import Job

# OneFlow's name of a buffer in a stage, or between stages.
_BUFFER = re.compile(r"System-Pipeline-Buffer-Op_-.*-stage_id_(\d+)")


def shrink(job: Job, stages: int) -> None:
    """Let stage s of p stages hold the activations of p - s micro-batches.

    OneFlow 0.9.0 copies each activation that the backward pass needs into one of 2 p buffers, on
    every stage but the last. Stage s needs p - s micro-batches: after so many forward passes, the
    gradient of the first one arrives. The latest activation waits where it was computed until a
    buffer is free, so one buffer less is enough.

    Args:
        job: a training graph after OneFlow's passes, changed in place.
    """
    micro_batches = job.job_conf.num_gradient_accumulation_steps
    for op in job.net.op:
        buffer = _BUFFER.fullmatch(op.name)
        if buffer is None:
            continue
        size = op.user_conf.attr["buffer_size"]
        # Buffers between stages have other sizes.
        if size.at_int64 == 2 * stages:
            size.at_int64 = max(1, min(stages - int(buffer[1]), micro_batches) - 1)
