from __future__ import annotations

import numpy as np
import oneflow as flow
import pytest

from libai_ext.errors import ConfigError
from libai_ext.optim.ema import WeightAverage


def linear():
    model = flow.nn.Linear(3, 2)
    model.bias.requires_grad = False
    return model


def test_averages_and_exchange():
    model = linear()
    average = WeightAverage(model, decay=0.75)
    expected = model.weight.numpy().astype(np.float64)
    for step in range(4):
        with flow.no_grad():
            model.weight.add_(step + 1.0)
        average.update()
        expected = 0.75 * expected + 0.25 * model.weight.numpy()
    raw, bias = model.weight.numpy().copy(), model.bias.numpy().copy()
    with average.in_model():
        np.testing.assert_allclose(model.weight.numpy(), expected, rtol=1e-6)
        np.testing.assert_array_equal(model.bias.numpy(), bias)
    np.testing.assert_array_equal(model.weight.numpy(), raw)
    assert list(average.state_dict()) == ["weight"]  # nothing is kept of what is frozen


def test_weights_come_back_after_an_error():
    model = linear()
    average = WeightAverage(model, decay=0.5)
    with flow.no_grad():
        model.weight.add_(1.0)
    raw = model.weight.numpy().copy()
    with pytest.raises(KeyError), average.in_model():
        raise KeyError
    np.testing.assert_array_equal(model.weight.numpy(), raw)


@pytest.mark.parametrize("decay", [1, -0.1])
def test_decay_out_of_range(decay):
    with pytest.raises(ConfigError, match="train.ema.decay"):
        WeightAverage(linear(), decay)
