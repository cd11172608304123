"""How much of a pipeline's graph is kept for the backward passes."""

from __future__ import annotations

import pytest
from oneflow.core.job.job_pb2 import Job

from libai_ext.engine.pipeline_buffers import shrink


def job(sizes: dict, micro_batches: int) -> Job:
    made = Job()
    made.job_conf.num_gradient_accumulation_steps = micro_batches
    for name, size in sizes.items():
        op = made.net.op.add(name=name)
        op.user_conf.op_type_name = "identity_buffer"
        op.user_conf.attr["buffer_size"].at_int64 = size
    return made


@pytest.mark.parametrize("micro_batches, kept", [(8, [3, 2, 1]), (3, [2, 2, 1]), (2, [1, 1, 1])])
def test_stage_keeps_what_its_later_stages_are_at_work_on(micro_batches, kept):
    names = [f"System-Pipeline-Buffer-Op_-blocks.{s}-add-out_0-stage_id_{s}" for s in range(3)]
    made = job(dict.fromkeys(names, 8), micro_batches)
    shrink(made, stages=4)
    assert [op.user_conf.attr["buffer_size"].at_int64 for op in made.net.op] == kept


def test_what_passes_between_stages_stays_as_it_is():
    sizes = {
        "System-Pipeline-Buffer-Op_-images-out_0": 1,
        "System-Pipeline-Buffer-Op_-images-out_0-stage_id_3": 3,
        "System-Pipeline-Buffer-Op_-blocks.2-out_0-stage_id_1": 1,
        "another-identity": 8,
    }
    made = job(sizes, 8)
    shrink(made, stages=4)
    assert {op.name: op.user_conf.attr["buffer_size"].at_int64 for op in made.net.op} == sizes
