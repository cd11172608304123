"""Exponential moving average of the weights (as timm's ``ModelEma``)."""

from __future__ import annotations

import contextlib

import oneflow as flow
from oneflow import nn

from libai_ext.errors import ConfigError


class WeightAverage:
    """After each step ``average = decay * average + (1 - decay) * weight``, for trained weights.

    The averages have the layout of the weights, in graph and eager mode, also if ZeRO splits them.
    A step that a loss scaler skips on a GPU counts as a step without change: the skip is known only
    later.

    Raises:
        ConfigError: a decay outside of [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise ConfigError(f"train.ema.decay must be at least 0 and less than 1, not {decay}")
        self.model = model
        self.decay = decay
        self.averages: dict[str, flow.Tensor] = {}
        self.reset()

    def _weights(self) -> dict[str, flow.Tensor]:
        return {name: p.data for name, p in self.model.named_parameters() if p.requires_grad}

    def reset(self) -> None:
        """Start from the weights as they are now."""
        self.averages = {name: weight.clone() for name, weight in self._weights().items()}

    def update(self) -> None:
        with flow.no_grad():
            for name, weight in self._weights().items():
                average = self.averages[name] = _laid_out_like(weight, self.averages[name])
                average.mul_(self.decay).add_(weight * (1 - self.decay))

    @contextlib.contextmanager
    def in_model(self):
        """Inside the block the model has the averaged weights."""
        held = {name: weight.clone() for name, weight in self._weights().items()}
        self._copy(self.averages)
        try:
            yield
        finally:
            self._copy(held)

    def _copy(self, values: dict[str, flow.Tensor]) -> None:
        with flow.no_grad():
            for name, weight in self._weights().items():
                weight.copy_(values[name])

    def state_dict(self) -> dict[str, flow.Tensor]:
        return dict(self.averages)

    def load_state_dict(self, state: dict[str, flow.Tensor]) -> None:
        with flow.no_grad():
            for name, average in self.averages.items():
                saved = state[name].to_global(placement=average.placement, sbp=average.sbp)
                average.copy_(saved)


def _laid_out_like(weight: flow.Tensor, average: flow.Tensor) -> flow.Tensor:
    if not weight.is_global or average.sbp == weight.sbp:
        return average
    return average.to_global(sbp=weight.sbp)
