"""Layer-wise adaptive rate scaling (You et al., 2017, arXiv:1708.03888)."""

from __future__ import annotations

import oneflow as flow
from oneflow.optim import Optimizer

from libai_ext.errors import ConfigError


class LARS(Optimizer):
    """LARS as in the official MAE's linear probe (``util/lars.py``).

    For a parameter w with more than one dimension and its gradient g::

        g = g + weight_decay * w
        g = trust_coefficient * |w| / |g| * g       (1 where a norm is 0)

    then, for every parameter, ``m = momentum * m + g`` and ``w = w - lr * m``. Parameters of one
    dimension are neither scaled nor decayed. Norms are those of whole tensors, also if split.

    Eager mode only: OneFlow's graph form of LARS puts the rate inside the momentum, so the loss
    differs as soon as the rate changes.
    """

    def __init__(
        self,
        params,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
    ):
        super().__init__(
            params,
            dict(
                lr=lr,
                momentum=momentum,
                weight_decay=weight_decay,
                trust_coefficient=trust_coefficient,
            ),
        )
        for group in self.param_groups:
            for parameter in group.parameters:
                self._state[parameter] = {}

    def step(self, closure=None):
        with flow.no_grad():
            for group in self.param_groups:
                for parameter in group.parameters:
                    if parameter.grad is not None:
                        self._update(parameter, parameter.grad, group)
        self._state["step"] += 1

    def _update(self, parameter: flow.Tensor, gradient: flow.Tensor, group) -> None:
        if parameter.ndim > 1:
            if group["weight_decay"]:
                gradient = gradient + group["weight_decay"] * parameter
            weight_norm, norm = _norm(parameter), _norm(gradient)
            trust = group["trust_coefficient"] * weight_norm / norm
            usable = flow.logical_and(weight_norm > 0, norm > 0)
            gradient = gradient * flow.where(usable, trust, flow.ones_like(trust))
        state = self._state[parameter]
        if "momentum_buf" not in state:
            state["momentum_buf"] = flow.zeros_like(parameter)
        momentum = state["momentum_buf"]
        momentum.mul_(group["momentum"]).add_(gradient)
        parameter.sub_(momentum * group["lr"])

    def _generate_conf_for_graph(self, train_conf, vars_conf):
        raise ConfigError("LARS has no graph form: set graph.enabled=False")


def _norm(tensor: flow.Tensor) -> flow.Tensor:
    """Euclidean norm, on every rank."""
    total = (tensor * tensor).sum()
    if total.is_global:
        total = total.to_global(sbp=[flow.sbp.broadcast] * len(total.sbp))
    return total.sqrt()
