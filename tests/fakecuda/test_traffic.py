"""What a training step sends between devices and copies to them, in a graph and op by op."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from fakecuda.report import Count, Report

pytestmark = pytest.mark.slow  # real launches

STEPS = 8
BATCH, IMAGE = 16, 32 * 32 * 4  # of a device in bytes
NOISE, LABEL = 64 * 4, 8
SMALL = (
    "train.warmup_iter=1",
    "train.log_period=100",
    "train.max_nonfinite_steps=100",  # the numbers of eager steps are stale
    "model.depth=1",
    "dataloader.train.num_workers=1",
)
PRETRAINING = ("mae_digits", ("model.decoder_depth=1", "task.picture_period=0"))
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
    "tp2": Kind(PRETRAINING, ("train.dist.tensor_parallel_size=2",), 2),
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


def test_data_parallel_ranks_exchange_gradients(steps):
    """36 of them, in groups of up to 24, each one start of NCCL. Beside that each step's loss,
    when the losses of several steps are read together."""
    report = steps("dp2")
    assert a_step(report) == {"ncclAllReduce": 4 * (PARAMETERS + 1)}
    reads = report.collectives["ncclAllReduce"].calls - 36 * STEPS
    assert 0 <= reads <= 2
    assert report.collective_launches == 2 * STEPS + reads


def test_mixed_precision_exchanges_half_as_much_once_per_step(steps):
    """Of several micro-batches; the mask token's gradient is a sum in float32."""
    report = steps("dp2 amp accumulation")
    assert a_step(report) == {"ncclAllReduce": 2 * PARAMETERS + 2 * D + 4}
    assert report.collective_launches <= 3 * STEPS
    # Numbers of the step itself, none of a micro-batch, go through the hosts.
    assert report.d2h["pinned"].bytes <= 16 * STEPS


def test_tensor_parallel_ranks_sum_twice_in_each_pass_of_a_layer(steps):
    """Activations of 1 + 16 tokens in the encoder, 1 + 64 in the decoder; beside that a count of
    gradients that are not finite, and the batch, which the first rank gives to the others."""
    report = steps("tp2")
    sums = 4 * 4 * BATCH * D * (17 + 65)
    assert a_step(report) == {"ncclAllReduce": sums + 8, "ncclBroadcast": BATCH * (IMAGE + NOISE)}
    assert report.collectives["ncclAllReduce"].calls == (8 + 1) * STEPS


def test_probing_exchanges_the_heads_gradients_and_the_batchs_statistics(steps):
    """Mean and variance of the features; three numbers of four bytes at most."""
    moved = a_step(steps("dp2 probe"))
    assert moved.keys() == {"ncclAllReduce"}
    assert 0 <= moved["ncclAllReduce"] - 4 * (HEAD + 2 * D) <= 12


@pytest.mark.parametrize(
    "kind, micro_batches, sample, arrays",
    [
        ("dp2", 1, IMAGE + NOISE, 2),
        ("dp2 amp accumulation", 2, IMAGE + NOISE, 2),
        ("tp2", 1, IMAGE + NOISE, 2),
        ("dp2 probe", 1, IMAGE + LABEL, 2),
    ],
)
def test_the_batch_is_copied_once_from_pinned_memory(steps, kind, micro_batches, sample, arrays):
    """Beside it only numbers of the schedule."""
    report = steps(kind)
    assert report.h2d.get("pageable", Count(0, 0)).calls == 0
    numbers = report.h2d["pinned"].calls - arrays * STEPS
    assert 0 <= numbers <= 12 * STEPS
    batch = micro_batches * BATCH * sample * STEPS
    assert report.h2d["pinned"].bytes == batch + 4 * numbers
