from __future__ import annotations

import numpy as np
import oneflow as flow
import pytest

from libai_ext.errors import ConfigError
from libai_ext.optim.lars import LARS


def reference(weight, bias, gradients, rates, decay, momentum=0.9, trust=0.001):
    """You et al., in float64; the bias is neither scaled nor decayed."""
    weight, bias = weight.astype(np.float64), bias.astype(np.float64)
    moments = [np.zeros_like(weight), np.zeros_like(bias)]
    for (of_weight, of_bias), rate in zip(gradients, rates):
        g = of_weight.astype(np.float64) + decay * weight
        norms = np.linalg.norm(weight), np.linalg.norm(g)
        if all(norms):
            g = g * (trust * norms[0] / norms[1])
        moments[0] = momentum * moments[0] + g
        moments[1] = momentum * moments[1] + of_bias.astype(np.float64)
        weight, bias = weight - rate * moments[0], bias - rate * moments[1]
    return weight, bias


@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("start", [0.3, 0.0])
def test_ten_steps(decay, start):
    rng = np.random.default_rng(0)
    weight = np.float32(start * rng.normal(size=(7, 5)))
    bias = np.float32(rng.normal(size=5))
    gradients = [(rng.normal(size=(7, 5)), rng.normal(size=5)) for _ in range(10)]
    gradients = [(np.float32(a), np.float32(b)) for a, b in gradients]
    rates = [6.4 * (10 - step) / 10 for step in range(10)]

    parameters = [flow.nn.Parameter(flow.tensor(array)) for array in (weight, bias)]
    optimizer = LARS(parameters, lr=1.0, weight_decay=decay)
    for pair, rate in zip(gradients, rates):
        for parameter, gradient in zip(parameters, pair):
            parameter.grad = flow.tensor(gradient)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    for parameter, expected in zip(parameters, reference(weight, bias, gradients, rates, decay)):
        scale = np.abs(expected).max()
        assert np.abs(parameter.numpy() - expected).max() < 1e-6 * max(scale, 1)


def test_graphs_are_refused():
    optimizer = LARS([flow.nn.Parameter(flow.ones(2, 2))], lr=1.0)
    with pytest.raises(ConfigError, match="graph.enabled=False"):
        optimizer._generate_conf_for_graph(None, None)
