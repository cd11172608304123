from __future__ import annotations

import oneflow as flow
import pytest

from libai_ext.engine.graph import Graph
from libai_ext.optim.schedule import warmup_cosine


def curve(lr, max_iter, warmup_iter, min_lr=0.0, at=None):
    weight = flow.nn.Parameter(flow.zeros(1))
    optimizer = flow.optim.SGD([weight], lr=lr)
    schedule = warmup_cosine(optimizer, max_iter, warmup_iter, min_lr)
    rates = []
    for _ in range(max_iter):
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.step()
    return rates if at is None else [rates[i] for i in at]


def test_a_small_run():
    """5 iterations, 2 of warm-up, from 1 to 0.1: the cosine of 0, 60 and 120 degrees."""
    assert curve(1.0, 5, 2, 0.1) == pytest.approx([0, 0.5, 1.0, 0.775, 0.325])


def test_no_warmup():
    assert curve(1.0, 4, 0) == pytest.approx([1, 0.853553391, 0.5, 0.146446609])


def test_warmup_only():
    assert curve(1.0, 3, 6) == pytest.approx([0, 1 / 6, 2 / 6])


def test_800_epochs_with_40_of_warmup():
    """Imagenet at batch 4096, 312 iterations an epoch: start, mid warm-up, peak, a quarter, half
    and three quarters of the cosine, epoch 760 (where LiBai's own curve is zero), the end."""
    at = [0, 20 * 312, 40 * 312, 230 * 312, 420 * 312, 610 * 312, 760 * 312, 800 * 312 - 1]
    rates = curve(2.4e-3, 800 * 312, 40 * 312, at=at)
    expected = [
        0,
        1.2e-3,
        2.4e-3,
        2.0485281374e-3,
        1.2e-3,
        3.514718626e-4,
        1.636643592e-5,
        1.05e-13,
    ]
    assert rates[:-1] == pytest.approx(expected[:-1], rel=1e-6)
    assert rates[-1] == pytest.approx(expected[-1], rel=0.01)


def test_graph_applies_the_same_curve():
    """SGD on a loss with gradient 1 moves the weight by the learning rate of each step."""

    class Sum(flow.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = flow.nn.Parameter(flow.zeros(1))

        def forward(self, x):
            return {"losses": (self.weight * x).sum()}

    model = Sum().to_global(placement=flow.placement("cpu", [0]), sbp=flow.sbp.broadcast)
    optimizer = flow.optim.SGD(model.parameters(), lr=1.0)
    graph = Graph(model=model, optimizer=optimizer, lr_scheduler=warmup_cosine(optimizer, 7, 3))
    one = flow.ones(1, placement=flow.placement("cpu", [0]), sbp=flow.sbp.broadcast)
    values = [0.0]
    for _ in range(7):
        graph(x=one)
        values.append(float(model.weight.numpy()))
    moved = [before - after for before, after in zip(values, values[1:])]
    assert moved == pytest.approx(curve(1.0, 7, 3), abs=1e-6)
