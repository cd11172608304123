"""Checkpoints of a small model, each known by the value of its weights."""

from __future__ import annotations

import numpy as np
import oneflow as flow
from oneflow import nn

from libai_ext.checkpoint.checkpointer import Checkpointer


class Average:
    """A checkpointable of another kind, as an exponential moving average is one."""

    def __init__(self, value: float):
        self.state = {"decay": 0.9, "weights": {"w": flow.full((3,), value).to_global(*PLACE)}}

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


PLACE = (flow.placement("cpu", [0]), flow.sbp.broadcast)


def model_of(value: float) -> nn.Module:
    model = nn.Linear(2, 3).to_global(*PLACE)
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)
    return model


def checkpointer_of(folder, value: float = 0.0, **options) -> Checkpointer:
    return Checkpointer(model_of(value), str(folder), ema=Average(value), **options)


def save(checkpointer, name, iteration, value=None, **options):
    if value is not None:
        for parameter in checkpointer.model.parameters():
            nn.init.constant_(parameter, value)
    checkpointer.save(name, iteration, **options)
    checkpointer.finish()


def weight(checkpointer) -> float:
    values = np.unique(checkpointer.model.weight.numpy())
    assert len(values) == 1
    return float(values[0])


def two_checkpoints(folder):
    """After iterations 3 and 7; their weights are 3 and 7."""
    checkpointer = checkpointer_of(folder)
    for iteration in (3, 7):
        save(checkpointer, f"model_{iteration:07d}", iteration, value=iteration)
    return folder


def resumed(folder) -> float:
    """The weight that a new run goes on from."""
    checkpointer = checkpointer_of(folder)
    checkpointer.load(checkpointer.get_checkpoint_file())
    return weight(checkpointer)
