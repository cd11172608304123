import numpy as np
import oneflow as flow
import pytest

STEPS = 5
BETAS = (0.9, 0.95)


def _reference(weight, gradients, lr, weight_decay, decoupled, epsilon=1e-8, amsgrad=False):
    weight = weight.astype(np.float64)
    m, v, v_max = (np.zeros_like(weight) for _ in range(3))
    for t, gradient in enumerate(gradients, start=1):
        gradient = gradient.astype(np.float64)
        if not decoupled:
            gradient = gradient + weight_decay * weight
        m = BETAS[0] * m + (1 - BETAS[0]) * gradient
        v = BETAS[1] * v + (1 - BETAS[1]) * gradient**2
        v_max = np.maximum(v_max, v)
        second = (v_max if amsgrad else v) / (1 - BETAS[1] ** t)
        step = m / (1 - BETAS[0] ** t) / (np.sqrt(second) + epsilon)
        weight = weight - lr * step - (lr * weight_decay * weight if decoupled else 0)
    return weight


def _run(optimizer_class, weight, gradients, **options):
    parameter = flow.nn.Parameter(flow.tensor(weight))
    optimizer = optimizer_class([parameter], betas=BETAS, **options)
    for gradient in gradients:
        parameter.grad = flow.tensor(gradient)
        optimizer.step()
    return parameter


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
@pytest.mark.parametrize("shape", [(1,), (7, 3), (100_003,)])
@pytest.mark.parametrize(
    ("optimizer", "decoupled"), [(flow.optim.AdamW, True), (flow.optim.Adam, False)]
)
def test_update(optimizer, decoupled, shape, scale, rng, assert_close):
    weight = rng.standard_normal(shape).astype(np.float32)
    gradients = [(scale * rng.standard_normal(shape)).astype(np.float32) for _ in range(STEPS)]
    actual = _run(optimizer, weight, gradients, lr=1e-2, weight_decay=0.05)
    assert_close(actual, _reference(weight, gradients, 1e-2, 0.05, decoupled))


def test_amsgrad_runs_on_oneflow(rng, assert_close):
    weight = rng.standard_normal(50).astype(np.float32)
    gradients = [rng.standard_normal(50).astype(np.float32) / t for t in range(1, STEPS + 1)]
    actual = _run(flow.optim.AdamW, weight, gradients, lr=1e-2, weight_decay=0.05, amsgrad=True)
    plain = _reference(weight, gradients, 1e-2, 0.05, True)
    wanted = _reference(weight, gradients, 1e-2, 0.05, True, amsgrad=True)
    assert np.abs(plain - wanted).max() > 1e-4  # else it would prove nothing
    assert_close(actual, wanted)


def test_nan_passes_on(rng):
    weight = rng.standard_normal(40).astype(np.float32)
    gradient = rng.standard_normal(40).astype(np.float32)
    gradient[3] = np.nan
    out = _run(flow.optim.AdamW, weight, [gradient], lr=1e-2).numpy()
    np.testing.assert_array_equal(np.isnan(out), np.isnan(gradient))


def test_graph_equals_eager(rng, assert_close):
    """In a graph, learning rate and bias correction come as tensors."""
    weight = rng.standard_normal((6, 10)).astype(np.float32)
    inputs = [rng.standard_normal((3, 6)).astype(np.float32) for _ in range(STEPS)]

    def make():
        linear = flow.nn.Linear(6, 10, bias=False)
        linear.weight = flow.nn.Parameter(flow.tensor(weight.T.copy()))
        return linear, flow.optim.AdamW(
            linear.parameters(), lr=1e-2, betas=BETAS, weight_decay=0.05
        )

    eager, eager_optimizer = make()
    for x in inputs:
        (eager(flow.tensor(x)) ** 2).sum().backward()
        eager_optimizer.step()
        eager_optimizer.zero_grad()

    model, optimizer = make()

    class Graph(flow.nn.Graph):
        def __init__(self):
            super().__init__()
            self.model = model
            self.add_optimizer(optimizer)

        def build(self, x):
            loss = (self.model(x) ** 2).sum()
            loss.backward()
            return loss

    graph = Graph()
    for x in inputs:
        graph(flow.tensor(x))
    assert_close(model.weight, eager.weight.numpy())
