"""What a training step copies, and what it waits for, between two logging steps."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.slow  # real launches

STEPS = 20


@pytest.fixture(scope="module", params=[1, 2])
def steps(request, fake_gpus, digits, tmp_path_factory):
    """Report of rank 0 for ``STEPS`` steps without a logging step among them."""
    processes = request.param

    def report(iterations):
        gpus = fake_gpus(count=processes)
        gpus.train(
            "projects/MAE/configs/mae_digits.py",
            processes,
            f"data.train=[{digits}/train]",
            f"train.output_dir={tmp_path_factory.mktemp('run')}",
            f"train.train_iter={iterations}",
            "train.warmup_iter=1",
            "train.global_batch_size=16",
            "train.log_period=100",
            "model.depth=1",
            "dataloader.train.num_workers=1",
            "task.picture_period=0",
        )
        return gpus.report(0)

    return report(8 + STEPS) - report(8)


def test_nothing_is_copied_to_the_host(steps):
    """But what the graph itself needs there: how many gradients are not finite, in pinned memory,
    for the loss scaler and the step counter. Nobody waits for it."""
    assert "pageable" not in steps.d2h
    assert steps.d2h["pinned"].calls == STEPS
    assert steps.d2h["pinned"].bytes <= 16 * STEPS


def test_nothing_is_waited_for(steps):
    """The engine's own threads wait for its events, to reuse memory."""
    assert {name for name, calls in steps.waits.items() if calls} <= {"cudaEventSynchronize"}
