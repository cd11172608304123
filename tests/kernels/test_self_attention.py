"""The op libai_ext_self_attention and its gradient."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import oneflow as flow
import pytest
from bfloat16 import rounded

from libai_ext import kernels
from libai_ext.compat.attention import self_attention

# batch, tokens, heads, head width; above 256 tokens there are several blocks of queries
SHAPES = [
    (1, 1, 1, 16),
    (2, 1, 3, 32),
    (3, 17, 3, 64),
    (2, 65, 4, 32),
    (2, 197, 2, 64),
    (1, 50, 2, 80),
    (1, 33, 2, 5),
    (1, 257, 1, 48),
    (1, 785, 1, 64),
    (0, 17, 3, 16),
]


def reference(packed, gradient, heads, scale, factor=lambda x: x):
    """Output and gradient of ``packed`` in float64; ``factor`` is applied to products' factors."""
    batch, tokens, width = packed.shape

    def product(a, b):
        return factor(a).astype(np.float64) @ factor(b)

    def turned(a):
        return np.swapaxes(a, -1, -2)

    def by_head(array, parts):
        split = array.reshape(batch, tokens, heads, parts, width // 3 // heads)
        return split.transpose(3, 0, 2, 1, 4).astype(np.float64)

    query, key, value = by_head(packed, 3)
    (upstream,) = by_head(gradient, 1)
    with np.errstate(all="ignore"):
        scores = product(scale * query, turned(key))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        by_weight = product(upstream, turned(value))
        by_score = weights * (by_weight - (weights * by_weight).sum(axis=-1, keepdims=True))
        out = product(weights, value)
        grads = [
            product(scale * by_score, key),
            product(scale * turned(by_score), query),
            product(turned(weights), upstream),
        ]
    out = out.transpose(0, 2, 1, 3).reshape(gradient.shape)
    return out, np.stack(grads).transpose(1, 3, 2, 0, 4).reshape(packed.shape)


def arrays(rng, shape):
    batch, tokens, heads, width = shape
    packed = rng.standard_normal((batch, tokens, 3 * heads * width)).astype(np.float32)
    return packed, rng.standard_normal((batch, tokens, heads * width)).astype(np.float32)


def compute(packed, gradient, width, scale):
    x = flow.tensor(packed, requires_grad=True)
    out = self_attention(x, width, scale)
    out.backward(flow.tensor(gradient))
    x.grad.numpy()  # waits for the kernels: a test may change the kind of products afterwards
    return out, x.grad


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradient(shape, rng, assert_close):
    packed, gradient = arrays(rng, shape)
    out, grad = compute(packed, gradient, shape[3], 0.3)
    expected = reference(packed, gradient, shape[2], 0.3)
    assert_close(out, expected[0])
    assert_close(grad, expected[1])


@pytest.mark.parametrize("shape", SHAPES[:-1], ids=str)
def test_products_of_bfloat16(shape, rng, assert_close):
    """Both factors of a product are rounded; the softmax is not."""
    if not kernels.bfloat16_instructions():
        with pytest.raises(RuntimeError, match="no instructions"):
            kernels.use_bfloat16_products(True)
        return
    packed, gradient = arrays(rng, shape)
    kernels.use_bfloat16_products(True)
    try:
        results = compute(packed, gradient, shape[3], 0.125)
    finally:
        kernels.use_bfloat16_products(False)
    model = reference(packed, gradient, shape[2], 0.125, lambda x: rounded(x.astype(np.float32)))
    exact = reference(packed, gradient, shape[2], 0.125)
    for result, expected, ideal in zip(results, model, exact):
        # A weight at the border between two bfloat16 numbers may be rounded to either.
        assert_close(result, expected, 1e-3)
        assert_close(result, ideal, 1e-2)


def test_scores_far_from_zero(rng, assert_close):
    packed, gradient = arrays(rng, (2, 65, 2, 32))
    packed *= np.float32(1e10)  # scores of 1e20: one weight of each row is 1
    out, _ = compute(packed, gradient, 32, 1.0)
    assert_close(out, reference(packed, gradient, 2, 1.0)[0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_stay_in_their_head(value, rng, assert_close):
    packed, gradient = arrays(rng, (2, 19, 2, 16))
    packed[0, 4, 16 + 3] = value  # the key of token 4, first head
    out, grad = compute(packed, gradient, 16, 0.25)
    expected = reference(packed, gradient, 2, 0.25)
    assert np.isnan(out.numpy()[0, :, :16]).any()
    assert_close(out, expected[0])
    touched = np.zeros(packed.shape, bool)
    touched[0, :, :48] = True
    assert_close(flow.tensor(grad.numpy()[~touched]), expected[1][~touched])


def test_in_a_graph_the_same_bits(rng):
    packed, gradient = arrays(rng, (2, 37, 2, 16))
    weight = flow.nn.Parameter(flow.tensor(packed))

    class Graph(flow.nn.Graph):
        def __init__(self):
            super().__init__()
            self.model = flow.nn.ParameterList([weight])
            self.add_optimizer(flow.optim.SGD([weight], lr=1.0))

        def build(self, upstream):
            out = self_attention(self.model[0], 16, 0.25)
            (out * upstream).sum().backward()
            return out

    expected, grad = compute(packed, gradient, 16, 0.25)
    graph = Graph()  # OneFlow may crash where one is destroyed while it runs
    out = graph(flow.tensor(gradient))
    np.testing.assert_array_equal(out.numpy(), expected.numpy())
    np.testing.assert_array_equal(weight.numpy(), packed - grad.numpy())


def test_a_view(rng, assert_close):
    packed, gradient = arrays(rng, (3, 20, 2, 16))
    x = flow.tensor(packed).transpose(0, 1)
    out = self_attention(x, 16, 0.25)
    expected = reference(packed.transpose(1, 0, 2), gradient.transpose(1, 0, 2), 2, 0.25)[0]
    assert_close(out, expected)


def test_the_gradient_interface_is_that_of_the_wheel():
    """csrc/shim/gradient_interface.h declares the same functions and members in the same order."""
    headers = Path(flow.__file__).parent / "include/oneflow/core/framework"

    def body(file, beginning):
        return (headers / file).read_text().split(f"{beginning} {{")[1].split("\n};")[0]

    function = body("op_expr_grad_function.h", "class OpExprGradFunctionIf")
    state = body("op_expr_grad_function.h", "class AutoGradCaptureState")
    for text, *names in (
        (function, "~OpExpr", "MakeCustomState", "Init", "CaptureIf", "ApplyIf"),
        (state, "~AutoGrad", "std::vector<bool> input_", "TensorTuple saved_", "kInitialSize> h"),
    ):
        places = [text.index(name) for name in names]
        assert places == sorted(places)
    assert function.count("virtual ") == 5 and state.count("virtual ") == 1
    context = body("op_interpreter.h", "struct OpExprInterpContext")
    assert re.search(r"\n  \S+ \w+;", context)[0].strip() == "AttrMap attrs;"


def test_half_a_head_is_refused():
    with pytest.raises(RuntimeError, match=r"\(2,3,64\) are not tokens of heads of 48 values"):
        self_attention(flow.ones(2, 3, 64), 16, 0.25)
