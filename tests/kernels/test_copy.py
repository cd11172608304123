"""Copies give NumPy's bits. Global tensors: OneFlow makes views of local ones, without a kernel."""

import itertools

import numpy as np
import oneflow as flow
import pytest


@pytest.fixture
def place():
    def make(array, requires_grad=False):
        here = flow.placement("cpu", ranks=[0])
        tensor = flow.tensor(array, requires_grad=requires_grad)
        return tensor.to_global(here, flow.sbp.broadcast)

    return make


@pytest.mark.parametrize("axes", list(itertools.permutations(range(4)))[1:], ids=str)
@pytest.mark.parametrize("shape", [(3, 50, 12, 96), (1, 65, 1, 7), (2, 1, 3, 1)], ids=str)
def test_permute(shape, axes, rng, place):
    x = rng.standard_normal(shape).astype(np.float32)
    np.testing.assert_array_equal(place(x).permute(*axes).numpy(), x.transpose(axes))


@pytest.mark.parametrize("shape", [(70, 600), (1, 5), (5, 1), (0, 4)], ids=str)
def test_transpose_and_reshape(shape, rng, place):
    x = rng.standard_normal(shape).astype(np.float32)
    np.testing.assert_array_equal(place(x).transpose(0, 1).numpy(), x.T)
    np.testing.assert_array_equal(place(x).reshape(1, x.size).numpy(), x.reshape(1, -1))


def test_large_copies(rng, place):
    x = rng.standard_normal((1003, 517)).astype(np.float32)
    np.testing.assert_array_equal(place(x).reshape(517, 1003).numpy(), x.reshape(517, 1003))
    copy = place(x).to_global(grad_sbp=flow.sbp.broadcast)
    np.testing.assert_array_equal(copy.numpy(), x)
    np.testing.assert_array_equal(flow.tensor(x).clone().numpy(), x)


@pytest.mark.parametrize("axis, start, length", [(0, 0, 3), (1, 13, 40), (2, 64, 64), (2, 191, 1)])
def test_narrow_and_its_gradient(axis, start, length, rng, place):
    x = rng.standard_normal((3, 53, 192)).astype(np.float32)
    x[2, 20, 80:90] = np.nan, np.inf, -np.inf, 1e-40, -0.0, 3e38, 0, 1, 2, 3
    cut = (slice(None),) * axis + (slice(start, start + length),)
    leaf = flow.tensor(x, requires_grad=True)
    out = leaf.to_global(flow.placement("cpu", ranks=[0]), flow.sbp.broadcast)
    out = out.narrow(axis, start, length)
    np.testing.assert_array_equal(out.numpy(), x[cut])
    out.backward(place(x[cut]))
    expected = np.zeros_like(x)
    expected[cut] = x[cut]
    np.testing.assert_array_equal(leaf.grad.numpy(), expected)


def test_other_types_stay_with_oneflow(place):
    x = np.arange(24, dtype=np.int64).reshape(2, 3, 4)
    np.testing.assert_array_equal(place(x).permute(2, 0, 1).numpy(), x.transpose(2, 0, 1))
    np.testing.assert_array_equal(place(x).narrow(2, 1, 2).numpy(), x[..., 1:3])
