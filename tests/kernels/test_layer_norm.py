import numpy as np
import oneflow as flow
import pytest

EPSILON = 1e-6


def _layer_norm(x, gamma=None, beta=None):
    if gamma is None:
        return flow._C.layer_norm(
            x, begin_norm_axis=x.ndim - 1, begin_params_axis=x.ndim - 1, epsilon=EPSILON
        )
    return flow._C.layer_norm_affine(
        x,
        gamma,
        beta,
        begin_norm_axis=x.ndim - 1,
        begin_params_axis=x.ndim - 1,
        epsilon=EPSILON,
    )


def _reference(x, gamma, beta, dy):
    """y, dx, dgamma, dbeta in float64."""
    x, gamma, beta, dy = (array.astype(np.float64) for array in (x, gamma, beta, dy))
    inv_std = 1 / np.sqrt(x.var(-1, keepdims=True) + EPSILON)
    h = (x - x.mean(-1, keepdims=True)) * inv_std
    g = dy * gamma
    dx = inv_std * (g - g.mean(-1, keepdims=True) - h * (g * h).mean(-1, keepdims=True))
    rows = tuple(range(x.ndim - 1))
    return h * gamma + beta, dx, (dy * h).sum(rows), dy.sum(rows)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(np.float32, 2e-6), (np.float64, 1e-13)], ids=["float32", "float64"]
)
@pytest.mark.parametrize(
    "shape", [(1576, 512), (13, 768), (5, 7), (2, 3, 65), (1, 9), (3, 5000), (300, 33)]
)
def test_affine(shape, dtype, tolerance, rng, assert_close):
    x = (2 * rng.standard_normal(shape) + 3).astype(dtype)
    gamma, beta = (rng.standard_normal(shape[-1]).astype(dtype) for _ in range(2))
    dy = rng.standard_normal(shape).astype(dtype)
    leaves = [flow.tensor(array, requires_grad=True) for array in (x, gamma, beta)]
    out = _layer_norm(*leaves)
    out.backward(flow.tensor(dy))
    expected = _reference(x, gamma, beta, dy)
    for actual, wanted in zip([out, *(leaf.grad for leaf in leaves)], expected):
        assert_close(actual, wanted, tolerance)


def test_plain(rng, tensor, assert_close):
    x, dy = (rng.standard_normal((4, 9, 33)).astype(np.float32) for _ in range(2))
    leaf = tensor(x)
    out = _layer_norm(leaf)
    out.backward(flow.tensor(dy))
    y, dx, _, _ = _reference(x, np.ones(33), np.zeros(33), dy)
    assert_close(out, y)
    assert_close(leaf.grad, dx)


def test_single_column_is_beta(tensor):
    out = _layer_norm(tensor([[3.0], [5.0]]), tensor([2.0]), tensor([7.0]))
    np.testing.assert_array_equal(out.numpy(), [[7.0], [7.0]])


@pytest.mark.parametrize("scale", [1e-2, 1e15])
def test_scale(scale, rng, tensor, assert_close):
    x, dy = (rng.standard_normal((6, 100)).astype(np.float32) for _ in range(2))
    x *= np.float32(scale)
    ones, zeros = np.ones(100, np.float32), np.zeros(100, np.float32)
    leaf = tensor(x)
    out = _layer_norm(leaf, tensor(ones), tensor(zeros))
    out.backward(flow.tensor(dy))
    y, dx, _, _ = _reference(x, ones, zeros, dy)
    assert_close(out, y)
    assert_close(leaf.grad, dx)


def test_nan_and_infinity_stay_in_their_row(rng, tensor):
    x = rng.standard_normal((4, 20)).astype(np.float32)
    x[1, 3], x[2, 4] = np.nan, np.inf
    out = _layer_norm(tensor(x), tensor(np.ones(20)), tensor(np.zeros(20))).numpy()
    np.testing.assert_array_equal(np.isnan(out).all(1), [False, True, True, False])
    assert np.isfinite(out[[0, 3]]).all()


def test_empty(tensor):
    leaves = [tensor(np.zeros((0, 5))), tensor(np.ones(5)), tensor(np.ones(5))]
    out = _layer_norm(*leaves)
    assert out.shape == (0, 5)


def test_views(rng, tensor, assert_close):
    x = rng.standard_normal((7, 6, 5)).astype(np.float32)
    ones, zeros = np.ones(7), np.zeros(7)
    out = _layer_norm(tensor(x).permute(1, 2, 0), tensor(ones), tensor(zeros))
    moved = x.transpose(1, 2, 0)
    assert_close(out, _reference(moved, ones, zeros, np.zeros_like(moved))[0])


def test_gradient_goes_into_the_output_in_a_graph(rng, assert_close):
    """A residual branch: the graph compiler hands its gradient over as `_add_to_output`."""
    x = rng.standard_normal((6, 40)).astype(np.float32)
    weight = flow.nn.Parameter(flow.tensor(x))
    gamma, beta = (rng.standard_normal(40).astype(np.float32) for _ in range(2))

    class Model(flow.nn.Module):
        def __init__(self):
            super().__init__()
            self.x = weight

        def forward(self, gamma, beta):
            return (self.x * 3.0 + _layer_norm(self.x, gamma, beta)).sum()

    class Graph(flow.nn.Graph):
        def __init__(self):
            super().__init__()
            self.model = Model()
            self.config.allow_fuse_add_to_output(True)
            self.add_optimizer(flow.optim.SGD([weight], lr=1.0))

        def build(self, gamma, beta):
            loss = self.model(gamma, beta)
            loss.backward()
            return loss

    graph = Graph()
    graph(flow.tensor(gamma), flow.tensor(beta))
    assert "_add_to_output" in str(graph._full_graph_proto)
    _, dx, _, _ = _reference(x, gamma, beta, np.ones_like(x))
    assert_close(weight, x - (3.0 + dx))
