"""LiBai's graph on OneFlow 0.9.0: module proxies and gradient accumulation."""

from __future__ import annotations

import numpy as np
import oneflow as flow
import pytest
from libai.models.utils import GraphBase

from libai_ext.engine.graph import Graph
from libai_ext.optim.schedule import warmup_cosine
from libai_ext.placement import batch_sbp, to_global
from projects.MAE.modeling.mae import MaskedAutoencoder


def build():
    flow.manual_seed(0)
    model = MaskedAutoencoder((16, 16), 4, 1, 16, 2, 2, 16, 1, 2).train()
    optimizer = flow.optim.SGD(model.parameters(), lr=0.1)
    schedule = warmup_cosine(optimizer, 10, 0)
    return dict(model=model, optimizer=optimizer, lr_scheduler=schedule)


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(8, 1, 16, 16)).astype(np.float32)
    noise = rng.random((8, 16), dtype=np.float32)
    return dict(images=to_global(images, batch_sbp()), noise=to_global(noise, batch_sbp()))


def weights_after(steps=3, **options):
    parts = build()
    graph = Graph(**parts, **options)
    for number in range(steps):
        graph(**inputs(number))
    return {name: p.numpy().copy() for name, p in parts["model"].named_parameters()}


def test_libai_cannot_checkpoint_activations_on_this_oneflow():
    with pytest.raises(AttributeError, match="origin"):
        GraphBase(**build(), activation_checkpoint=True)


def test_activation_checkpointing_changes_no_number():
    plain, checkpointed = weights_after(), weights_after(activation_checkpoint=True)
    for name in plain:
        np.testing.assert_allclose(checkpointed[name], plain[name], atol=1e-7, err_msg=name)


@pytest.mark.slow
def test_accumulation_does_not_race():
    """On several CPU streams more than half of such runs got wrong gradients; six in a row
    passing by chance would be one in 64 at the most."""
    plain = weights_after()
    for _ in range(6):
        accumulated = weights_after(grad_acc_steps=2)
        for name in plain:
            np.testing.assert_allclose(accumulated[name], plain[name], atol=1e-6, err_msg=name)
