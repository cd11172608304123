"""What counts as a fault, and what a step that is left out leaves behind."""

from __future__ import annotations

import logging
import time
from types import SimpleNamespace

import numpy as np
import oneflow as flow
import pytest

from libai_ext.engine import steps
from libai_ext.engine.nonfinite import NonFiniteMonitor
from libai_ext.engine.run_metrics import Means
from libai_ext.engine.steps import WARM_UP, EagerSteps, GraphSteps
from libai_ext.engine.trainer import Trainer
from libai_ext.layers.batch_norm import BatchNorm
from libai_ext.placement import batch_sbp, broadcast_sbp, to_global


@pytest.fixture
def scaled(monkeypatch):
    """Steps of a graph at a loss scale of 2048, at least 1024."""
    monkeypatch.setattr(steps, "scales_loss", lambda train: True)
    amp = SimpleNamespace(enabled=True, init_scale=2048, min_scale=1024, growth_interval=4)
    trainer = SimpleNamespace(cfg=SimpleNamespace(train=SimpleNamespace(amp=amp)))
    return GraphSteps(trainer, NonFiniteMonitor(trainer, 0))


@pytest.mark.parametrize(
    "scale, streak, good, most",
    [
        (2048, 0, 3, 1),
        (2048, 0, 4, 2),
        (1024, 0, 3, 0),
        (1024, 2, 2, 1),
        # Below the minimum, after a fault that was allowed: no step was left out, and none may be.
        (512, 0, 1, 0),
        (1, 0, 3, 0),
        # It grows to the minimum, then above it.
        (512, 3, 1, 0),
        (512, 0, 8, 1),
    ],
)
def test_overflows_that_are_no_faults(scaled, scale, streak, good, most):
    scaled.loss_scale, scaled.good = scale, streak
    assert scaled._max_overflows(good) == most


@pytest.mark.parametrize("scale, warnings", [(512, 1), (1024, 0)])
def test_a_scale_below_the_minimum_is_named(scaled, caplog, scale, warnings):
    with caplog.at_level(logging.WARNING):
        scaled.load_state_dict({"loss_scale": scale, "good": 1}, 5)
    text = (
        "the loss scale of the checkpoint, 512, is below train.amp.min_scale 1024: until it has "
        "grown, each overflow is a fault"
    )
    assert [record.message for record in caplog.records] == [text] * warnings
    assert (scaled.loss_scale, scaled.good, scaled.taken) == (scale, 1, 5)


class Normalised(flow.nn.Module):
    """A loss over normalised and weighted features."""

    def __init__(self):
        super().__init__()
        self.norm = BatchNorm(2)
        self.weight = flow.nn.Parameter(to_global(np.ones(2, np.float32), broadcast_sbp()))

    def forward(self, x):
        return {"losses": (self.norm(x) * self.weight).square().mean()}


def test_a_step_that_is_left_out_changes_no_running_statistics():
    """Not even where only the second of its micro-batches is not finite."""
    model = Normalised().train()
    good = np.array([[1, 2], [3, 6]], np.float32)
    batches = iter([good, good, good, good * np.float32("nan"), good, good])
    train = SimpleNamespace(num_accumulation_steps=2)
    trainer = SimpleNamespace(
        cfg=SimpleNamespace(train=train, optim=SimpleNamespace(params={})),
        model=model,
        optimizer=flow.optim.SGD(model.parameters(), lr=0.0),
        next_batch=lambda: {"x": to_global(next(batches), batch_sbp())},
        means=Means(),
        iter=0,
    )
    found = []
    monitor = SimpleNamespace(faults=0)
    monitor.report = lambda *args, **more: found.append(model.norm.running_mean.numpy().tolist())
    steps = EagerSteps(trainer, monitor)
    means = []
    for skipped in (False, True, False):
        steps.run()
        assert steps.skipped is skipped
        means.append(model.norm.running_mean.numpy().tolist())
    # Momentum 0.1, twice a step: the mean of the batch is (2, 4).
    assert means[0] == pytest.approx([0.38, 0.76], rel=1e-5)
    assert means[1] == means[0] and found == [means[0]]  # also in the state that is saved then
    assert means[2] == pytest.approx([0.6878, 1.3756], rel=1e-5)
    assert np.isfinite(model.norm.running_var.numpy()).all() and steps.taken == 2


def test_the_wait_of_a_step_is_that_of_all_its_micro_batches():
    class Slow:
        start_iter, average, means, _batches = 0, None, Means(), iter(range(3))
        iter = WARM_UP
        steps = SimpleNamespace(run=lambda: [trainer.next_batch() for _ in range(3)])
        next_batch, run_step = Trainer.next_batch, Trainer.run_step

        def get_batch(self, batch):
            time.sleep(0.05)

    trainer = Slow()
    trainer.run_step()
    means = trainer.means.take()
    assert 0.15 < means["data_time"] < means["time"]
