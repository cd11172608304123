import numpy as np
import oneflow as flow
import pytest

# (m, n, k): tiles are 12 x 32 or 6 x 16, blocks 480 or 240 x 512 or 256, 384 deep
SHAPES = [
    (1, 1, 1),
    (1, 1, 1000),
    (1, 513, 7),
    (12, 32, 384),
    (13, 33, 385),
    (5, 17, 3),
    (197, 197, 32),
    (241, 1025, 769),
    (400, 768, 768),
    (481, 513, 20),
]


def _operand(rng, rows, cols, transposed, batch=()):
    stored = rng.standard_normal((*batch, *((cols, rows) if transposed else (rows, cols))))
    stored = stored.astype(np.float32)
    return stored, np.swapaxes(stored, -1, -2) if transposed else stored


@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_matrices(shape, transpose_a, transpose_b, rng, tensor, assert_close):
    m, n, k = shape
    a, a_matrix = _operand(rng, m, k, transpose_a)
    b, b_matrix = _operand(rng, k, n, transpose_b)
    x, y = tensor(a), tensor(b)
    out = flow.matmul(x, y, transpose_a=transpose_a, transpose_b=transpose_b, alpha=0.5)
    assert_close(out, 0.5 * a_matrix.astype(np.float64) @ b_matrix)

    gradient = rng.standard_normal((m, n)).astype(np.float32)
    out.backward(flow.tensor(gradient))
    a_grad = 0.5 * gradient.astype(np.float64) @ b_matrix.T
    b_grad = 0.5 * a_matrix.T.astype(np.float64) @ gradient
    assert_close(x.grad, a_grad.T if transpose_a else a_grad)
    assert_close(y.grad, b_grad.T if transpose_b else b_grad)


@pytest.mark.parametrize(
    ("a_batch", "b_batch"),
    [
        ((6, 3), (6, 3)),
        ((3,), (3,)),
        ((6, 1), (3,)),
        ((1, 3), (6, 1)),
        ((3,), ()),
        ((2, 3), ()),
        ((1, 1), (1, 1)),
        ((1,), (5,)),
    ],
)
@pytest.mark.parametrize("transpose_a", [False, True])
def test_batches(a_batch, b_batch, transpose_a, rng, tensor, assert_close):
    a, a_matrix = _operand(rng, 50, 64, transpose_a, a_batch)
    b, b_matrix = _operand(rng, 64, 21, False, b_batch)
    out = flow.matmul(tensor(a), tensor(b), transpose_a=transpose_a)
    assert_close(out, a_matrix.astype(np.float64) @ b_matrix)


def test_gradients_of_a_weight_shared_by_a_batch(rng, tensor, assert_close):
    a = rng.standard_normal((3, 50, 65)).astype(np.float32)
    for transposed in (False, True):
        w, w_matrix = _operand(rng, 65, 21, transposed)
        gradient = rng.standard_normal((3, 50, 21)).astype(np.float32)
        x, y = tensor(a), tensor(w)
        flow.matmul(x, y, transpose_b=transposed).backward(flow.tensor(gradient))
        w_grad = np.einsum("bik,bij->kj", a.astype(np.float64), gradient)
        assert_close(x.grad, gradient.astype(np.float64) @ w_matrix.T)
        assert_close(y.grad, w_grad.T if transposed else w_grad)


def test_views(rng, tensor, assert_close):
    a = rng.standard_normal((2, 40, 3, 16)).astype(np.float32)
    b = rng.standard_normal((30, 80)).astype(np.float32)
    out = flow.matmul(tensor(a).permute(0, 2, 1, 3), tensor(b)[3:19, 5:70])
    assert_close(out, a.transpose(0, 2, 1, 3).astype(np.float64) @ b[3:19, 5:70])


@pytest.mark.parametrize(("m", "n", "k"), [(0, 3, 4), (3, 0, 4), (3, 4, 0)])
def test_empty(m, n, k):
    out = flow.matmul(flow.ones(m, k), flow.ones(k, n)).numpy()
    np.testing.assert_array_equal(out, np.zeros((m, n), np.float32))


@pytest.mark.parametrize("scale", [1e-18, 1e17])
def test_scale(scale, rng, tensor, assert_close):
    a = (scale * rng.standard_normal((33, 70))).astype(np.float32)
    b = (scale * rng.standard_normal((70, 45))).astype(np.float32)
    assert_close(flow.matmul(tensor(a), tensor(b)), a.astype(np.float64) @ b)


def test_nan_and_infinity_stay_in_their_row(rng, tensor, assert_close):
    a = np.abs(rng.standard_normal((40, 50))).astype(np.float32)
    b = np.abs(rng.standard_normal((50, 60))).astype(np.float32)
    a[3, 4], a[7, 8], a[39, 49] = np.nan, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        expected = a.astype(np.float64) @ b
    assert_close(flow.matmul(tensor(a), tensor(b)), expected)


def test_float64_runs_on_oneflow(rng):
    a, b = rng.standard_normal((7, 9)), rng.standard_normal((9, 5))
    np.testing.assert_allclose(flow.matmul(flow.tensor(a), flow.tensor(b)).numpy(), a @ b)


def test_sum_goes_into_the_output_in_a_graph(rng, tensor, assert_close):
    """The graph compiler hands the other addend to matmul as `_add_to_output`."""
    a = rng.standard_normal((2, 35, 40)).astype(np.float32)
    w = rng.standard_normal((40, 50)).astype(np.float32)
    c = rng.standard_normal((2, 35, 50)).astype(np.float32)

    class Graph(flow.nn.Graph):
        def __init__(self):
            super().__init__()
            self.config.allow_fuse_add_to_output(True)

        def build(self, a, w, c):
            return flow.add(flow.matmul(a, w), c * 2.0)

    graph = Graph()
    out = graph(*(flow.tensor(array) for array in (a, w, c)))
    assert "_add_to_output" in str(graph._full_graph_proto)
    assert_close(out, a.astype(np.float64) @ w + 2.0 * c)
