"""Frozen means frozen: no gradient, no optimizer state, no decay, no drop path."""

from __future__ import annotations

import numpy as np
import oneflow as flow
import pytest

from libai_ext.engine.graph import Graph
from libai_ext.errors import ConfigError
from libai_ext.optim.param_groups import layer_decay
from libai_ext.placement import batch_sbp, to_global
from projects.MAE.modeling.vit import ViTClassifier

DEPTH = 3
MLP = ("post_attention_layernorm.", "mlp.")
TRAINED = {
    0: ["head."],
    0.5: ["head.", *(f"blocks.2.{part}" for part in MLP)],
    1: ["head.", "blocks.2."],
    2: ["head.", "blocks.1.", "blocks.2."],
    3: [""],
}


def build(n_partial, pooling="mean"):
    return ViTClassifier(
        (8, 8), 4, 3, 5, 8, DEPTH, 2, pooling=pooling, drop_path=0.2, n_partial=n_partial
    )


def expected_names(model, n_partial, pooling):
    prefixes = list(TRAINED[n_partial])
    if pooling == "mean":
        prefixes.append("fc_norm.")
    elif n_partial >= 1:
        prefixes.append("norm.")
    return {name for name, _ in model.named_parameters() if name.startswith(tuple(prefixes))}


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("n_partial", TRAINED)
def test_what_is_trained(n_partial, pooling):
    model = build(n_partial, pooling)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == expected_names(model, n_partial, pooling)
    rates = [block.drop_rates for block in model.blocks]
    frozen = DEPTH - int(n_partial)
    whole = [(0.0, 0.0), (0.1, 0.1), (0.2, 0.2)]
    expected = [(0.0, 0.0)] * frozen + whole[frozen:]
    if n_partial == 0.5:
        expected[-1] = (0.0, 0.2)
    assert rates == expected


@pytest.mark.parametrize("mode", ["graph", "eager"])
@pytest.mark.parametrize("n_partial", TRAINED)
def test_twenty_steps(n_partial, mode):
    model = build(n_partial).train()
    before = {name: p.numpy().copy() for name, p in model.named_parameters()}
    optimizer = flow.optim.AdamW(layer_decay(model, weight_decay=0.05, decay=0.65), lr=1e-2)
    if mode == "graph":
        graph = Graph(
            model=model,
            optimizer=optimizer,
            lr_scheduler=flow.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100),
        )
    rng = np.random.default_rng(0)
    for _ in range(20):
        images, labels, noise = (
            to_global(array, batch_sbp())
            for array in (
                rng.normal(size=(4, 3, 8, 8)).astype(np.float32),
                rng.dirichlet(np.ones(5), size=4).astype(np.float32),
                rng.random((4, DEPTH, 2), dtype=np.float32),
            )
        )
        if mode == "graph":
            graph(images=images, labels=labels, path_noise=noise)
            continue
        model(images, labels, noise)["losses"].backward()
        assert {n for n, p in model.named_parameters() if p.grad is not None} == expected_names(
            model, n_partial, "mean"
        )
        optimizer.step()
        optimizer.zero_grad()
    trained = expected_names(model, n_partial, "mean")
    for name, parameter in model.named_parameters():
        changed = not np.array_equal(parameter.numpy(), before[name])
        assert changed == (name in trained), name
    if mode == "eager":
        held = {id(key) for key in optimizer._state if isinstance(key, flow.Tensor)}
        assert held == {id(p) for n, p in model.named_parameters() if n in trained}
    else:
        state = [name for name in graph.state_dict() if name not in ("model", "train_step")]
        moments = {name for name in _leaves(graph.state_dict()) if name.endswith("-m")}
        assert len(moments) == len(trained), state


def _leaves(tree, prefix=""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


@pytest.mark.parametrize("n_partial", [-1, 0.3, 1.5, 4])
def test_other_parts_do_not_exist(n_partial):
    with pytest.raises(ConfigError, match="model.n_partial must be 0, 0.5 or a number of blocks"):
        build(n_partial)
