"""What a training step sends between devices and copies to them, in a graph and op by op."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from fakecuda.report import Report

pytestmark = pytest.mark.slow  # real launches

STEPS = 8
BATCH, IMAGE = 16, 32 * 32 * 4  # of a device in bytes
NOISE = 64 * 4
# As test_layouts.py, with one layer in the encoder and one in the decoder.
SMALL = (
    "train.warmup_iter=1",
    "train.log_period=100",
    "train.max_nonfinite_steps=100",  # the numbers of eager steps are stale
    "model.depth=1",
    "dataloader.train.num_workers=1",
)
PRETRAINING = ("mae_digits", ("model.decoder_depth=1", "task.picture_period=0"))
FINETUNING = ("mae_digits_finetune", ("finetune.enable=False", "model.drop_path=0.3"))
PROBE = ("mae_digits_linprobe", ("finetune.enable=False",))

D = 64  # width of encoder and decoder
LAYER = 12 * D * D + 13 * D  # parameters of a transformer layer
PARAMETERS = 2 * LAYER + (16 * D + D) + D * D + D + (16 * D + 16) + 2 * 2 * D + 2 * D
HEAD = 10 * D + 10


class Kind(NamedTuple):
    task: tuple
    options: tuple
    processes: int


KINDS = {
    "dp2": Kind(PRETRAINING, (), 2),
    "dp2 amp accumulation": Kind(
        PRETRAINING, ("train.amp.enabled=True", "train.num_accumulation_steps=2"), 2
    ),
    "dp2 pp2": Kind(PRETRAINING, ("train.dist.pipeline_parallel_size=2",), 4),
    "tp2": Kind(PRETRAINING, ("train.dist.tensor_parallel_size=2",), 2),
    "dp2 fine-tuning": Kind(FINETUNING, (), 2),
    "dp2 probe": Kind(PROBE, (), 2),
}


@pytest.fixture(scope="module")
def steps(fake_gpus, digits, tmp_path_factory):
    """Report of rank 0 for ``STEPS`` steps of a kind, made once."""
    made: dict[str, Report] = {}

    def run(kind: Kind, iterations: int) -> Report:
        (config, options), more, processes = kind
        gpus = fake_gpus(count=processes)
        gpus.train(
            f"projects/MAE/configs/{config}.py",
            processes,
            f"data.train=[{digits}/train]",
            f"train.output_dir={tmp_path_factory.mktemp('run')}",
            f"train.train_iter={iterations}",
            *SMALL,
            f"train.train_micro_batch_size={BATCH}",
            "train.global_batch_size=null",
            *options,
            *more,
        )
        return gpus.report(0)

    def get(name: str) -> Report:
        if name not in made:
            made[name] = run(KINDS[name], 3 + STEPS) - run(KINDS[name], 3)
        return made[name]

    return get


def a_step(report: Report) -> dict[str, float]:
    """Bytes of each collective."""
    return {name: c.bytes / STEPS for name, c in report.collectives.items() if c.calls}


def test_data_parallel_ranks_exchange_gradients_and_the_loss(steps):
    """In three groups of calls: 24 gradients, the other 12, the loss."""
    report = steps("dp2")
    assert a_step(report) == {"ncclAllReduce": 4 * (PARAMETERS + 1)}
    assert report.collectives["ncclAllReduce"].calls == 37 * STEPS
    assert report.collective_launches == 3 * STEPS
