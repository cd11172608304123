"""Attention maps are the model's own."""

from __future__ import annotations

import numpy as np
import oneflow as flow
import pytest

from libai_ext.placement import batch_sbp, to_global
from projects.MAE.modeling.mae import MaskedAutoencoder
from projects.MAE.pictures import attention
from projects.MAE.pictures.visualize import overlay


@pytest.fixture
def model():
    model = MaskedAutoencoder((8, 16), 4, 3, 24, 3, 4, 16, 1, 2).eval()
    rng = np.random.default_rng(1)
    with flow.no_grad():  # initial weights attend evenly
        for block in model.blocks:
            weight = block.self_attention.query_key_value.weight
            weight.copy_(to_global(np.float32(rng.normal(size=tuple(weight.shape))), weight.sbp))
    return model


@pytest.fixture
def images():
    values = np.random.default_rng(0).normal(size=(2, 3, 8, 16)).astype(np.float32)
    return to_global(values, batch_sbp())


def test_they_give_what_the_layers_compute(model, images):
    """With LiBai's values and output projection, each map gives its layer's attention output."""
    weights = attention.attention_weights(model, images)
    assert [w.shape for w in weights] == [(2, 4, 9, 9)] * 3
    tokens = model.embed(images)
    for block, weight in zip(model.blocks, weights):
        np.testing.assert_allclose(weight.sum(-1), 1, rtol=1e-5)
        layer, normed = block.self_attention, block.input_layernorm(tokens)
        value = layer.query_key_value(normed).numpy().reshape(2, 9, 4, 3, 6)[:, :, :, 2]
        context = np.einsum("bhqk,bkhe->bqhe", weight, value).reshape(2, 9, 24)
        expected = context @ layer.dense.weight.numpy() + layer.dense.bias.numpy()
        np.testing.assert_allclose(layer(normed).numpy(), expected, atol=1e-4)
        tokens = block(tokens)
    np.testing.assert_allclose(model.norm(tokens).numpy(), model.features(images).numpy())
    assert weights[-1].std() > 0.05


def test_class_token_to_patches():
    """Two layers by hand: one head looks at patch 1 alone, then half at itself, half at 0."""
    first, second = np.zeros((2, 1, 1, 3, 3))
    first[..., 2] = 1
    second[..., [0, 1]] = 0.5
    np.testing.assert_array_equal(attention.last_layer([first, second]), [[[0.5, 0]]])
    # (second + 1) / 2 @ (first + 1) / 2, row 0: 0.75 * [.5, 0, .5] + 0.25 * [0, .5, .5]
    np.testing.assert_allclose(attention.rollout([first, second]), [[0.125, 0.5]])


def test_overlay_keeps_patches_apart():
    shown = overlay(np.full((4, 8, 3), 0.5), np.array([[0.1, 0.3]]))
    assert shown.shape == (4, 8, 3)
    left, right = shown[:, :4], shown[:, 4:]
    assert (left == left[0, 0]).all() and (right == right[0, 0]).all()
    np.testing.assert_allclose(left[0, 0], [0.2, 0.2, 0.2], atol=0.01)
    np.testing.assert_allclose(right[0, 0], [0.2 + 0.6 * c for c in (0.99, 1, 0.64)])
