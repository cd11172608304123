"""How many micro-batches the stages of a pipeline keep for their backward passes."""

from __future__ import annotations

import re

from oneflow.core.job.job_pb2 import Job

# OneFlow's name for what a stage keeps, or receives from another stage.
_BUFFER = re.compile(r"System-Pipeline-Buffer-Op_-.*-stage_id_(\d+)")


def shorten(job: Job, stages: int) -> None:
    """Let stage s hold the activations of p - s micro-batches, p stages in all.

    OneFlow 0.9.0 copies each activation that the backward pass needs into one of 2 p buffers, on
    every stage but the last. No more than p - s micro-batches are of use to stage s: when it has
    run that many forward, the gradient of the first one comes back. The latest of them stays where
    it was computed until a buffer is free, so that one buffer less is enough.

    Args:
        job: a training graph after OneFlow's passes, changed in place.
    """
    micro_batches = job.job_conf.num_gradient_accumulation_steps
    for op in job.net.op:
        buffer = _BUFFER.fullmatch(op.name)
        if buffer is None:
            continue
        size = op.user_conf.attr["buffer_size"]
        # What passes between stages has buffers of other sizes.
        if size.at_int64 == 2 * stages:
            size.at_int64 = max(1, min(stages - int(buffer[1]), micro_batches) - 1)
