"""Each repair, and the defect it removes."""

from __future__ import annotations

import importlib
import subprocess
import sys

import libai.data.data_utils as data_utils
import libai.utils.distributed as dist
import numpy as np
import oneflow as flow
import pytest
from libai.layers import LayerNorm, Linear, MultiheadAttention

from libai_ext.compat import gather, layer_norm, nlp_helper, own_ops, placements, repairs


def original(module_name: str, attribute: str):
    """What LiBai's own source defines, before any repair."""
    spec = importlib.util.find_spec(module_name)
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    return getattr(fresh, attribute)


def global_tensor(array):
    placement = flow.placement("cpu", [0])
    return flow.from_numpy(array).to_global(placement=placement, sbp=flow.sbp.broadcast)


def test_gather_stays_on_the_device():
    assert dist.ttol is gather.ttol
    loss = global_tensor(np.float32([1.5, 2.5]))
    assert dist.tton(loss, ranks=[0]).tolist() == [1.5, 2.5]
    with pytest.raises(Exception, match="there is no device"):
        original("libai.utils.distributed", "ttol")(loss, ranks=[0])


def test_nlp_helper_is_not_compiled_again():
    assert data_utils.compile_helper is nlp_helper.compile_helper
    data_utils.compile_helper()
    with pytest.raises(SystemExit):
        original("libai.data.data_utils.dataset_utils", "compile_helper")()


def reference(x, eps, weight=1.0, bias=0.0):
    x = x.astype(np.float64)
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weight + bias


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm_on_cpu(monkeypatch, native, affine):
    """With the native kernel and composed of plain ops, forward and gradients."""
    if not native:
        monkeypatch.setattr(layer_norm.kernels, "is_loaded", lambda: False)
    rng = np.random.default_rng(0)
    x, upstream = rng.normal(2, 3, (2, 5, 7)), rng.normal(size=(2, 5, 7))
    norm = LayerNorm(7, eps=1e-6, elementwise_affine=affine)
    weight, bias = (rng.normal(size=7), rng.normal(size=7)) if affine else (1.0, 0.0)
    if affine:
        with flow.no_grad():
            norm.weight.copy_(global_tensor(weight.astype(np.float32)))
            norm.bias.copy_(global_tensor(bias.astype(np.float32)))
    tensor = global_tensor(x.astype(np.float32)).requires_grad_()
    out = norm(tensor)
    (out * global_tensor(upstream.astype(np.float32))).sum().backward()

    np.testing.assert_allclose(out.numpy(), reference(x, 1e-6, weight, bias), atol=2e-6)
    step = 1e-5
    for index in ((0, 0, 0), (1, 4, 6), (0, 3, 2)):
        shifted = [x.copy(), x.copy()]
        shifted[0][index] += step
        shifted[1][index] -= step
        up, down = ((reference(s, 1e-6, weight, bias) * upstream).sum() for s in shifted)
        assert tensor.grad.numpy()[index] == pytest.approx((up - down) / (2 * step), abs=1e-5)


def test_without_the_repair_layer_norm_ends_the_process():
    code = (
        "import os; os.environ['LIBAI_EXT_NATIVE'] = '0'\n"
        "from libai_ext.startup import start; start()\n"
        "import oneflow as flow\n"
        "x = flow.ones(2, 4)\n"
        "flow._C.layer_norm(x, begin_norm_axis=1, begin_params_axis=1, epsilon=1e-6).numpy()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert result.returncode != 0


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"skip_bias_add": True}])
def test_linear_without_copies(monkeypatch, options, native):
    """The same bits as by LiBai's own, which casts once and adds the bias by itself, forward and
    backward."""
    if not native:
        monkeypatch.setattr(own_ops.kernels, "is_loaded", lambda: False)
    rng = np.random.default_rng(0)
    layer = Linear(5, 3, **options)
    x = rng.normal(size=(2, 4, 5)).astype(np.float32)
    upstream = global_tensor(rng.normal(size=(2, 4, 3)).astype(np.float32))
    casts, to_global = [], flow.Tensor.to_global
    sums, add = [], flow.Tensor.__add__
    results = []
    for forward in (original("libai.layers.linear", "Linear").forward, Linear.forward):
        tensor = global_tensor(x).requires_grad_()
        with monkeypatch.context() as context:
            context.setattr(
                flow.Tensor, "to_global", lambda *a, **k: casts.append(k) or to_global(*a, **k)
            )
            context.setattr(flow.Tensor, "__add__", lambda *a: sums.append(a) or add(*a))
            out = forward(layer, tensor)
        out, bias = out if isinstance(out, tuple) else (out, None)
        assert bias is (layer.bias if options.get("skip_bias_add") else None)
        (out * upstream).sum().backward()
        grads = [p.grad.numpy().copy() for p in layer.parameters() if p.grad is not None]
        results.append((out.numpy(), tensor.grad.numpy(), *grads))
        layer.zero_grad(set_to_none=True)
    assert [list(cast) for cast in casts] == [["grad_sbp"]]
    assert len(sums) == (0 if options else 1 if native else 2)
    assert len(results[1]) == (3 if options else 4)
    for theirs, ours in zip(*results):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("native", [True, False])
def test_attention_without_copies_and_matrices(monkeypatch, native):
    """What LiBai's own computes, which keeps the matrices of its softmax."""
    if not native:
        monkeypatch.setattr(own_ops.kernels, "is_loaded", lambda: False)
    rng = np.random.default_rng(0)
    layer = MultiheadAttention(24, 3)
    x, upstream = (global_tensor(np.float32(rng.normal(size=(2, 7, 24)))) for _ in range(2))
    softmaxes, softmax = [], flow.softmax
    monkeypatch.setattr(flow, "softmax", lambda *a, **k: softmaxes.append(a) or softmax(*a, **k))
    results = []
    fresh = original("libai.layers.attention", "MultiheadAttention").forward
    for forward in (fresh, MultiheadAttention.forward):
        tensor = x.detach().clone().requires_grad_()
        out = forward(layer, tensor, attention_mask=None, use_cache=False)
        (out * upstream).sum().backward()
        gradient = layer.query_key_value.weight.grad
        results.append((out.numpy(), tensor.grad.numpy(), gradient.numpy().copy()))
        gradient.zero_()
    assert len(softmaxes) == (1 if native else 2)
    for theirs, ours in zip(*results):
        np.testing.assert_allclose(ours, theirs, atol=2e-6 * np.abs(theirs).max())


def test_attention_with_more_than_the_native_op_has_is_libais():
    rng = np.random.default_rng(0)
    x = global_tensor(np.float32(rng.normal(size=(2, 5, 24))))
    mask = global_tensor(np.ones((2, 1, 5, 5), np.float32))
    layer = MultiheadAttention(24, 3)
    plain = layer(x).numpy()
    np.testing.assert_allclose(layer(x, None, mask).numpy(), plain, atol=1e-5)
    out, (key, _) = layer(x, use_cache=True)
    assert key.shape == (2, 3, 5, 8)
    np.testing.assert_allclose(out.numpy(), plain, atol=1e-5)
    dropping = MultiheadAttention(24, 3, attention_dropout_prob=0.5)
    dropping.load_state_dict(layer.state_dict())
    assert np.abs(dropping(x).numpy() - plain).max() > 1e-3
    np.testing.assert_allclose(dropping.eval()(x).numpy(), plain, atol=1e-5)


def test_applying_twice_changes_nothing():
    def repaired():
        return dist.ttol, data_utils.compile_helper, LayerNorm.forward, Linear.forward

    before = repaired()
    repairs.apply()
    assert repaired() == before


def test_starting_prints_nothing():
    code = "from libai_ext.startup import start; start(); start()"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=60, text=True, check=True
    )
    assert (result.stdout, result.stderr) == ("", "")


def test_placements_are_made_once():
    """LiBai's own makes another one, which OneFlow never frees, at each call."""
    first = dist.get_layer_placement(0)
    assert dist.get_layer_placement(0) is first
    assert first == original("libai.utils.distributed", "get_layer_placement")(0)
    one, nested = placements.placement("cpu", [0]), placements.placement("cpu", [[0]])
    assert placements.placement("cpu", [0]) is one
    assert (one.ranks.ndim, nested.ranks.ndim) == (1, 2)
