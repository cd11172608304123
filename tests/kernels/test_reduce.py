import numpy as np
import oneflow as flow
import pytest

AXES = [(0,), (1,), (2,), (3,), (0, 1), (1, 2), (2, 3), (0, 2), (1, 3), (0, 3), (0, 1, 3), (-1, 0)]


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("axes", [*AXES, (0, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("shape", [(6, 9, 11, 5), (1, 70, 1, 65), (2, 3, 1, 1)], ids=str)
def test_axes(shape, axes, keepdim, rng, assert_close):
    x = rng.standard_normal(shape).astype(np.float32)
    out = flow.sum(flow.tensor(x), dim=list(axes), keepdim=keepdim)
    assert_close(out, x.sum(axes, dtype=np.float64, keepdims=keepdim))


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        *[((1_000_003,), 0), ((300_000, 3), 0), ((2, 400_001), 1), ((1576, 2048), 0)],
        *[((50_000, 65), 0), ((9, 4095), 1)],
    ],
)
def test_long_axes_stay_exact(shape, axis, rng, assert_close):
    x = rng.random(shape).astype(np.float32)  # all positive: errors do not cancel
    assert_close(flow.sum(flow.tensor(x), dim=axis), x.sum(axis, dtype=np.float64), 3e-7)


@pytest.mark.parametrize("axis", [0, 1])
def test_empty(axis):
    out = flow.sum(flow.ones(0, 3), dim=axis)
    np.testing.assert_array_equal(out.numpy(), np.zeros((3, 0)[axis], np.float32))


@pytest.mark.parametrize("axis", [0, 1])
def test_nan_and_infinity(axis, rng, assert_close):
    x = rng.standard_normal((70, 80)).astype(np.float32)
    x[3, 4], x[5, 6], x[7, 8], x[9, 8] = np.nan, np.inf, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        expected = x.sum(axis, dtype=np.float64)
    assert_close(flow.sum(flow.tensor(x), dim=axis), expected)


def test_views(rng, assert_close):
    x = rng.standard_normal((30, 40, 5)).astype(np.float32)
    out = flow.sum(flow.tensor(x).permute(2, 0, 1)[1:4], dim=1)
    assert_close(out, x.transpose(2, 0, 1)[1:4].sum(1, dtype=np.float64))


def test_sum_like_undoes_broadcasting(rng, tensor, assert_close):
    small = tensor(rng.standard_normal((1, 7, 1)))
    gradient = rng.standard_normal((3, 7, 9)).astype(np.float32)
    (small + flow.zeros(3, 7, 9)).backward(flow.tensor(gradient))
    assert_close(small.grad, gradient.sum((0, 2), dtype=np.float64, keepdims=True))
