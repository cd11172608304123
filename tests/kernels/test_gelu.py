import math

import numpy as np
import oneflow as flow
import pytest

_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def _cdf(x):
    return 0.5 * _erfc(-x / math.sqrt(2))


def _gelu(x):
    return x * _cdf(x)


def _gelu_slope(x):
    return _cdf(x) + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _check(x, rng, tensor, assert_close, tolerance=2e-6):
    x = x.astype(np.float32)
    dy = rng.standard_normal(x.shape).astype(np.float32)
    leaf = tensor(x)
    out = flow.nn.functional.gelu(leaf)
    out.backward(flow.tensor(dy))
    with np.errstate(invalid="ignore"):
        exact = x.astype(np.float64)
        assert_close(out, _gelu(exact), tolerance)
        assert_close(leaf.grad, dy * _gelu_slope(exact), tolerance)


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5, 11), (16, 4097)])
def test_shapes(shape, rng, tensor, assert_close):
    _check(3 * rng.standard_normal(shape), rng, tensor, assert_close)


def test_whole_range(rng, tensor, assert_close):
    _check(np.linspace(-13, 13, 100_001), rng, tensor, assert_close)


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
def test_scale(scale, rng, tensor, assert_close):
    _check(scale * rng.standard_normal(1000), rng, tensor, assert_close)


@pytest.mark.parametrize("low", [-1.5, -3.0, -5.0, -8.0])
def test_tail_is_exact_by_itself(low, rng, tensor, assert_close):
    """Small results are right too, not only next to large ones."""
    _check(np.linspace(low - 0.5, low, 1001), rng, tensor, assert_close, tolerance=6e-6)


def test_views(rng, assert_close):
    x = rng.standard_normal((30, 50)).astype(np.float32)
    out = flow.nn.functional.gelu(flow.tensor(x).transpose(0, 1))
    assert_close(out, _gelu(x.T.astype(np.float64)))


def test_nan_and_infinity(rng, tensor, assert_close):
    _check(np.array([np.nan, np.inf, -np.inf, 0.0, 1.0]), rng, tensor, assert_close)


def test_empty():
    assert flow.nn.functional.gelu(flow.ones(0, 3)).shape == (0, 3)
