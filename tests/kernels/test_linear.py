"""The op libai_ext_linear and its gradients."""

from __future__ import annotations

import numpy as np
import oneflow as flow
import pytest
from bfloat16 import assert_product
from libai.layers import Linear

from libai_ext import kernels
from libai_ext.compat.linear import linear

# leading dimensions, inputs, outputs: at and beside the edges of tiles, panels and blocks
SHAPES = [
    ((1,), 1, 1),
    ((7,), 5, 3),
    ((2, 17), 65, 33),
    ((3, 2, 16), 385, 32),
    ((33,), 1025, 47),
    ((1100,), 33, 17),
    ((5,), 3, 2051),
    ((0, 4), 6, 5),
]


@pytest.fixture(params=["float32", "bfloat16"])
def products(request):
    """The kind of products; skips none: where the CPU has no bfloat16, it is refused."""
    if request.param == "bfloat16" and not kernels.bfloat16_instructions():
        with pytest.raises(RuntimeError, match="no instructions"):
            kernels.use_bfloat16_products(True)
        yield "float32"
        return
    kernels.use_bfloat16_products(request.param == "bfloat16")
    yield request.param
    kernels.use_bfloat16_products(False)


@pytest.fixture
def check(products):
    """Compare ``out`` with ``a @ b + addend``, each element within the error of its own sum."""

    def compare(out, a, b, addend=0.0):
        a, b, addend = (np.asarray(array, np.float64) for array in (a, b, addend))
        if products == "bfloat16":
            assert_product(out.numpy(), a, b, addend=addend)
            return
        with np.errstate(all="ignore"):
            expected = a @ b + addend
            size = np.abs(np.nan_to_num(a)) @ np.abs(np.nan_to_num(b)) + np.abs(addend)
        finite, actual = np.isfinite(expected), out.numpy()
        np.testing.assert_array_equal(actual[~finite], expected[~finite])
        bound = (a.shape[-1] + 2) * 2.0**-24 * size + 2.0**-149
        assert np.all(np.abs(actual[finite] - expected[finite]) <= bound[finite])

    return compare


def arrays(rng, leading, inputs, outputs):
    shapes = (*leading, inputs), (inputs, outputs), (outputs,), (*leading, outputs)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def compute(x, weight, bias, upstream, needed=(True, True, True)):
    inputs = [
        flow.tensor(array, requires_grad=needs) for array, needs in zip((x, weight, bias), needed)
    ]
    out = linear(*inputs)
    out.backward(flow.tensor(upstream))
    return out, *(tensor.grad for tensor in inputs)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradients(shape, rng, check, assert_close):
    x, weight, bias, upstream = arrays(rng, *shape)
    out, x_grad, weight_grad, bias_grad = compute(x, weight, bias, upstream)
    rows, upstream_rows = x.reshape(-1, shape[1]), upstream.reshape(-1, shape[2])
    check(out, x, weight, bias)
    check(x_grad, upstream, weight.T)
    check(weight_grad, rows.T, upstream_rows)
    assert_close(bias_grad, upstream_rows.sum(axis=0, dtype=np.float64))


def test_nan_infinity_tiny_and_huge_values(rng, check, assert_close):
    """Each stays in its row or column. The gradient of the bias is a sum of float32 numbers with
    both kinds of products: subnormal ones count."""
    special = np.float32([np.nan, np.inf, -np.inf, 1e-40, -5e37, 5e37, 0.0, -1e-45])
    x, weight, bias, upstream = arrays(rng, (40,), 9, 35)
    x[:8] = 0.0
    np.fill_diagonal(x[:8], special)
    weight = np.sign(weight)
    bias[3:11] = special
    upstream[:, :8] = 0.0
    upstream[20, :8] = special
    out, x_grad, weight_grad, bias_grad = compute(x, weight, bias, upstream)
    check(out, x, weight, bias)
    check(x_grad, upstream, weight.T)
    check(weight_grad, x.T, upstream)
    np.testing.assert_array_equal(bias_grad.numpy()[:8], special)
    assert_close(bias_grad[8:], upstream[:, 8:].sum(axis=0, dtype=np.float64))


@pytest.mark.parametrize("needed", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)], ids=str)
def test_only_the_gradients_that_are_needed(needed, rng):
    given = arrays(rng, (2, 9), 20, 30)
    expected = compute(*given)
    results = compute(*given, needed=[bool(flag) for flag in needed])
    for flag, result, all_of_them in zip(needed, results[1:], expected[1:]):
        assert (result is not None) == bool(flag)
        if flag:
            np.testing.assert_array_equal(result.numpy(), all_of_them.numpy())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_in_a_graph_the_same_bits(checkpointing, products, rng):
    """Two layers, a step of SGD; also if the graph computes activations again."""
    x, first, first_bias, _ = arrays(rng, (2, 9), 20, 30)
    _, second, second_bias, upstream = arrays(rng, (2, 9), 30, 25)
    start = [first, first_bias, second, second_bias]

    class Layers(flow.nn.Module):
        def __init__(self):
            super().__init__()
            weights = [flow.nn.Parameter(flow.tensor(array)) for array in start]
            self.w1, self.b1, self.w2, self.b2 = weights

        def forward(self, x):
            return linear(flow.nn.functional.gelu(linear(x, self.w1, self.b1)), self.w2, self.b2)

    class Graph(flow.nn.Graph):
        def __init__(self, model):
            super().__init__()
            self.model = model
            if checkpointing:
                self.model.to(flow.nn.graph.GraphModule).activation_checkpointing = True
            self.add_optimizer(flow.optim.SGD(model.parameters(), lr=1.0))

        def build(self, x, upstream):
            out = self.model(x)
            (out * upstream).sum().backward()
            return out

    eager, model = Layers(), Layers()
    expected = eager(flow.tensor(x))
    (expected * flow.tensor(upstream)).sum().backward()
    graph = Graph(model)
    out = graph(flow.tensor(x), flow.tensor(upstream))
    np.testing.assert_array_equal(out.numpy(), expected.numpy())
    for trained, parameter, array in zip(model.parameters(), eager.parameters(), start):
        np.testing.assert_array_equal(trained.numpy(), array - parameter.grad.numpy())


def test_a_view(rng, assert_close):
    x, weight, bias, _ = arrays(rng, (3, 20), 7, 11)
    out = linear(flow.tensor(x).transpose(0, 1), flow.tensor(weight), flow.tensor(bias))
    assert_close(out, x.transpose(1, 0, 2).astype(np.float64) @ weight + bias)


@pytest.mark.parametrize(
    "shapes", [((2, 6), (5, 3), (3,)), ((2, 5), (5, 3), (4,)), ((5,), (5, 3), (3,))], ids=str
)
def test_shapes_that_do_not_fit_are_refused(shapes):
    with pytest.raises(RuntimeError, match=r"a linear layer cannot have an input of shape \("):
        linear(*(flow.ones(*shape) for shape in shapes))


def test_types_that_differ_are_refused():
    with pytest.raises(RuntimeError, match="(x|weight|bias) has another type than (x|weight|bias)"):
        linear(flow.ones(2, 5), flow.ones(5, 3, dtype=flow.float64), flow.ones(3))


def test_a_vector_takes_oneflows_product(rng):
    """As without native kernels: the op wants rows."""
    layer = Linear(5, 3)
    x, weight, bias, _ = arrays(rng, (), 5, 3)
    for parameter, array in ((layer.weight, weight), (layer.bias, bias)):
        own = flow.tensor(array, placement=parameter.placement, sbp=parameter.sbp)
        parameter.data.copy_(own)
    out = layer(flow.tensor(x, placement=layer.weight.placement, sbp=layer.bias.sbp))
    np.testing.assert_allclose(out.numpy(), x @ weight + bias, 1e-5)
