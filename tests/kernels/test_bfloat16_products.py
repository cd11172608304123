"""OneFlow's ops with products of bfloat16; where the CPU has none, that they are refused."""

from __future__ import annotations

import numpy as np
import oneflow as flow
import pytest
from bfloat16 import assert_product, product

from libai_ext import kernels


@pytest.fixture
def switched(native):
    """Turns the products on; gives whether that could be done. Off again afterwards."""
    if kernels.bfloat16_instructions():
        kernels.use_bfloat16_products(True)
        yield True
        kernels.use_bfloat16_products(False)
        return
    with pytest.raises(RuntimeError, match="no instructions for products of bfloat16"):
        kernels.use_bfloat16_products(True)
    yield False


def _check(on: bool, out, a, b, alpha=1.0) -> None:
    """Of bfloat16 where they are on; else of float32, which are far from them."""
    out = out.numpy()
    if on:
        assert_product(out, a, b, alpha)
        return
    exact = alpha * a.astype(np.float64) @ b
    np.testing.assert_allclose(out, exact, atol=2e-6 * np.abs(exact).max())
    assert np.abs(product(a, b, alpha)[0] - exact).max() > 1e-4 * np.abs(exact).max()


def _random(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def _turned(a):
    return np.swapaxes(a, -1, -2)


@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize("batch", [(), (3, 4)])
def test_matmul_and_both_gradients(switched, batch, transpose_b, rng, tensor):
    a, b, g = (
        _random(rng, *batch, 50, 65),
        _random(rng, *batch, 65, 37),
        _random(rng, *batch, 50, 37),
    )
    x, y = tensor(a), tensor(_turned(b) if transpose_b else b)
    out = flow.matmul(x, y, transpose_b=transpose_b)
    out.backward(tensor(g))
    _check(switched, out, a, b)
    _check(switched, x.grad, g, _turned(b))
    if transpose_b:
        _check(switched, y.grad, _turned(g), a)
    else:
        _check(switched, y.grad, _turned(a), g)


def test_a_weight_shared_by_a_batch(switched, rng, tensor):
    a, w, g = _random(rng, 3, 50, 65), _random(rng, 21, 65), _random(rng, 3, 50, 21)
    x, y = tensor(a), tensor(w)
    flow.matmul(x, y, transpose_b=True).backward(tensor(g))
    _check(switched, x.grad, g, w)
    _check(switched, y.grad, g.reshape(150, 21).T, a.reshape(150, 65))


def test_operands_repeated_along_some_axes(switched, rng, tensor):
    a, b = _random(rng, 1, 3, 20, 30), _random(rng, 2, 1, 30, 40)
    _check(switched, flow.matmul(tensor(a), tensor(b), alpha=0.125), a, b, 0.125)


@pytest.mark.parametrize(
    "batches", [((2,), (), (2,)), ((2,), (2,), (2,)), ((1, 2), (3, 1), (3, 2))]
)
def test_in_a_graph_with_a_sum_in_the_output(batches, switched, rng):
    of_a, of_w, of_c = batches
    a, w, c = _random(rng, *of_a, 35, 40), _random(rng, *of_w, 40, 50), _random(rng, *of_c, 35, 50)

    class Graph(flow.nn.Graph):
        def __init__(self):
            super().__init__()
            self.config.allow_fuse_add_to_output(True)

        def build(self, a, w, c):
            return flow.add(flow.matmul(a, w), c * 2.0)

    graph = Graph()
    out = graph(*(flow.tensor(array) for array in (a, w, c))).numpy()
    if switched:
        assert_product(out, a, w, addend=2 * c.astype(np.float64))
    else:
        np.testing.assert_allclose(out, a.astype(np.float64) @ w + 2 * c, atol=1e-4)


def test_off_again_it_is_float32(switched, rng, tensor):
    kernels.use_bfloat16_products(False)
    a, b = _random(rng, 33, 70), _random(rng, 70, 45)
    _check(False, flow.matmul(tensor(a), tensor(b)), a, b)
