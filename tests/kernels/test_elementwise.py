import operator

import numpy as np
import oneflow as flow
import pytest

OPERATORS = [operator.add, operator.sub, operator.mul, operator.truediv]
SHAPES = [
    ((3, 5, 7), (7,)),
    ((3, 5, 7), (1, 5, 7)),
    ((3, 5, 7), (3, 5, 1)),
    ((3, 5, 7), (3, 1, 1)),
    ((3, 5, 7), (3, 5, 7)),
    ((3, 5, 7), (1,)),
    ((5, 7), (3, 5, 7)),
    ((3, 5, 7), (3, 1, 7)),
    ((1, 5, 1), (3, 1, 7)),
    ((1, 1, 7), (1, 1, 7)),
    ((1,), (1, 1)),
    ((2, 1, 3, 1, 5), (1, 4, 3, 2, 5)),
    ((8, 196, 768), (8, 196, 1)),
    ((400, 769), (769,)),
    ((0, 5), (5,)),
    ((3, 0), (3, 1)),
]


def _sum_to(gradient, shape):
    """What a gradient adds up to where an operand was repeated."""
    gradient = gradient.sum(tuple(range(gradient.ndim - len(shape))))
    repeated = tuple(i for i, dim in enumerate(shape) if dim == 1)
    return gradient.sum(repeated, keepdims=True)


@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_broadcasting(shapes, op, rng, tensor, assert_close):
    a = rng.standard_normal(shapes[0]).astype(np.float32)
    b = (np.abs(rng.standard_normal(shapes[1])) + 0.5).astype(np.float32)
    x, y = tensor(a), tensor(b)
    out = op(x, y)
    a, b = a.astype(np.float64), b.astype(np.float64)
    assert_close(out, op(a, b))
    if out.numel() == 0:
        return

    gradient = rng.standard_normal(tuple(out.shape)).astype(np.float32)
    out.backward(flow.tensor(gradient))
    slopes = {
        operator.add: (1, 1),
        operator.sub: (1, -1),
        operator.mul: (b, a),
        operator.truediv: (1 / b, -a / b**2),
    }[op]
    assert_close(x.grad, _sum_to(gradient * slopes[0], shapes[0]))
    assert_close(y.grad, _sum_to(gradient * slopes[1], shapes[1]))


@pytest.mark.parametrize("op", OPERATORS)
def test_nan_infinity_and_zero(op, tensor, assert_close):
    values = np.array([np.nan, np.inf, -np.inf, 0.0, -1e38, 1e-38, 3e38], np.float32)
    x, y = np.meshgrid(values, values)
    with np.errstate(all="ignore"):
        expected = op(x, y)  # in float32, for its infinities
        assert_close(op(tensor(x), tensor(y)), expected)
        assert_close(op(tensor(x), tensor(values)), op(x, values))


def test_views(rng, tensor, assert_close):
    a = rng.standard_normal((6, 9)).astype(np.float32)
    b = rng.standard_normal((9, 12)).astype(np.float32)
    assert_close(tensor(a).transpose(0, 1) + tensor(b)[:, ::2], a.T + b[:, ::2])


def test_in_place(rng, assert_close):
    a = rng.standard_normal((6, 9)).astype(np.float32)
    row = rng.standard_normal(9).astype(np.float32)
    x = flow.tensor(a)
    x += flow.tensor(row)
    assert_close(x, a + row)


@pytest.mark.parametrize(
    ("shape", "axis"), [((4, 7), 1), ((4, 7, 5), 1), ((4, 1), 1), ((0, 3), 1), ((3, 5), 0)]
)
def test_bias_add(shape, axis, rng, assert_close):
    a = rng.standard_normal(shape).astype(np.float32)
    bias = rng.standard_normal(shape[axis]).astype(np.float32)
    out = flow._C.bias_add(flow.tensor(a), flow.tensor(bias), axis=axis)
    along = [1] * len(shape)
    along[axis] = shape[axis]
    assert_close(out, a + bias.reshape(along))


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("size", [0, 1, 70_001])
def test_add_n(count, size, rng, assert_close):
    arrays = [rng.standard_normal(size).astype(np.float32) for _ in range(count)]
    out = flow._C.add([flow.tensor(array) for array in arrays], inplace=False)
    assert_close(out, np.sum(arrays, axis=0, dtype=np.float64))


@pytest.mark.parametrize("shape", [(0, 3), (1,), (13, 5401)])
def test_square(shape, rng):
    x = rng.standard_normal(shape).astype(np.float32)
    np.testing.assert_array_equal(flow.tensor(x).square().numpy(), x * x)


def test_square_of_odd_numbers():
    x = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-25, 1e25], np.float32)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(flow.tensor(x).square().numpy(), x * x)
