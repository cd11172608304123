"""Copies give NumPy's bits. Global tensors: OneFlow makes views of local ones, without a kernel."""

import itertools
import subprocess
import sys

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


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_concat_and_its_gradient(axis, rng, place):
    whole = rng.standard_normal((5, 60, 9 * 20)).astype(np.float32)
    whole[4, 50, 170:174] = np.nan, np.inf, -0.0, 1e-40
    parts = np.split(whole, [1, 2], axis=axis)
    leaves = [place(np.ascontiguousarray(part), requires_grad=True) for part in parts]
    out = flow.cat(leaves, dim=axis)
    np.testing.assert_array_equal(out.numpy(), whole)
    gradients = flow.autograd.grad(out, leaves, place(whole))
    for gradient, part in zip(gradients, parts):
        np.testing.assert_array_equal(gradient.numpy(), part)


@pytest.mark.parametrize("shape", [(1, 1, 20), (30, 1, 1), (1, 50, 1), (1, 50, 20), (1, 1, 1)])
def test_expand(shape, rng, place):
    x = rng.standard_normal(shape).astype(np.float32)
    expected = np.broadcast_to(x, (30, 50, 20))
    np.testing.assert_array_equal(place(x).expand(30, 50, 20).numpy(), expected)
    more = place(x).expand(2, 30, 50, 20)
    np.testing.assert_array_equal(more.numpy(), np.broadcast_to(x, (2, 30, 50, 20)))


@pytest.mark.parametrize("axes", [[0], [1], [2], [0, 1], [0, 2], [1, 2], [-1], [0, 1, 2]], ids=str)
@pytest.mark.parametrize("keep", [True, False])
def test_broadcast_like(axes, keep, rng, place):
    like = rng.standard_normal((40, 30, 24)).astype(np.float32)
    x = like.sum(axis=tuple(axes), keepdims=True)
    given = x if keep else x.squeeze(tuple(axes))
    out = flow._C.broadcast_like(place(given), place(like), broadcast_axes=axes)
    np.testing.assert_array_equal(out.numpy(), np.broadcast_to(x, like.shape))


@pytest.mark.parametrize("index_type", [np.int32, np.int64])
@pytest.mark.parametrize("picked", [1, 64, 200])
def test_gather_and_its_gradient(index_type, picked, rng, place):
    """Rows that are picked more than once get the sum of the gradients."""
    x = rng.standard_normal((7, 64, 130)).astype(np.float32)
    ids = rng.integers(0, 64, (7, picked)).astype(index_type)
    leaf = place(x, requires_grad=True)
    out = flow.batch_gather(leaf, place(ids))
    np.testing.assert_array_equal(out.numpy(), np.take_along_axis(x, ids[..., None], axis=1))
    dy = rng.standard_normal(out.shape).astype(np.float32)
    (gradient,) = flow.autograd.grad(out, [leaf], place(dy))
    expected = np.zeros_like(x)
    for sample in range(7):
        np.add.at(expected[sample], ids[sample], dy[sample])
    np.testing.assert_array_equal(gradient.numpy(), expected)


GATHER = """
import oneflow as flow
from libai_ext import kernels
assert kernels.load().loaded
flow.batch_gather(flow.ones(1, 4, 2), flow.tensor([[3, {}]])).numpy()
"""


@pytest.mark.parametrize("index", [-1, 4])
def test_an_index_out_of_range_is_named(index):
    command = [sys.executable, "-c", GATHER.format(index)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert f"indices[1] is {index}, not one of 4 rows" in result.stderr
