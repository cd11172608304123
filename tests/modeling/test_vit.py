"""The classifier against outputs of real PyTorch and of transformers' ViT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import oneflow as flow
import pytest

from libai_ext.errors import ConfigError
from libai_ext.layers.initialize import assign
from libai_ext.placement import batch_sbp, to_global
from projects.MAE.modeling.pos_embed import sincos_pos_embed
from projects.MAE.modeling.vit import ViTClassifier, cross_entropy
from projects.MAE.rules import read_config
from projects.MAE.weights.files import read_weights
from projects.MAE.weights.match import match
from projects.MAE.weights.packing import Heads

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def build(**changes):
    sizes = dict(
        img_size=(16, 16),
        patch_size=4,
        in_chans=3,
        num_classes=5,
        embed_dim=48,
        depth=2,
        num_heads=4,
    )
    return ViTClassifier(**dict(sizes, **changes))


@pytest.mark.parametrize(
    "name, pooling",
    [("fb_finetune.pth", "mean"), ("timm_cls.safetensors", "cls"), ("hf_classifier", "cls")],
)
def test_logits(name, pooling):
    numbers = np.load(GOLDEN / f"{name.split('.')[0]}.npz")
    weights, source = read_weights(str(GOLDEN / name), Heads(encoder=3))
    width, _, patch, _ = weights["patch_embed.proj.weight"].shape
    depth = len({key.split(".")[1] for key in weights if key.startswith("blocks.")})
    model = build(
        img_size=numbers["images"].shape[2:],
        patch_size=patch,
        pooling=pooling,
        embed_dim=width,
        depth=depth,
        num_heads=3,
        num_classes=len(weights["head.bias"]),
    ).eval()
    state = model.state_dict()
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    with flow.no_grad():
        for key, array in match(shapes, weights).weights.items():
            assign(state[key], array)
    images = to_global(np.float32(numbers["images"]), batch_sbp())
    logits = model(images)["prediction_scores"].numpy()
    np.testing.assert_allclose(logits, numbers["output"], atol=1e-4)


def test_initial_values():
    """timm's, as the official code uses it to train from scratch."""
    model = build(head_std=0.01)
    for name, parameter in model.named_parameters():
        values = parameter.numpy()
        if name.startswith("patch_embed."):
            bound = (3 * 4 * 4) ** -0.5
            assert 0.9 * bound < np.abs(values).max() <= bound, name
            assert values.std() == pytest.approx(bound / np.sqrt(3), rel=0.15), name
        elif values.ndim > 1:
            std = 0.01 if name == "head.weight" else 0.02
            assert values.std() == pytest.approx(std, rel=0.3), name
            assert np.abs(values).max() > 2 * std, name
        else:
            assert (values == (0 if name.endswith("bias") else 1)).all(), name
    assert model.pos_embed.requires_grad
    narrow = build(init="pretraining")
    np.testing.assert_allclose(narrow.pos_embed.numpy(), sincos_pos_embed((4, 4), 48), atol=1e-6)
    assert narrow.blocks[0].mlp.dense_h_to_4h.weight.numpy().std() == pytest.approx(
        np.sqrt(2 / (48 + 192)), rel=0.05
    )
    assert narrow.patch_embed.proj.bias.numpy().std() > 0.5 * bound / np.sqrt(3)
    assert [block.drop_rates for block in build(depth=3, drop_path=0.2).blocks] == [
        (0.0, 0.0),
        (0.1, 0.1),
        (0.2, 0.2),
    ]


def test_a_layer_that_is_always_dropped_is_refused():
    """What it lets pass is divided by the share of samples that have it."""
    with pytest.raises(ConfigError, match="model.drop_path must be .* below 1, not 1"):
        read_config("mae_finetune", ["model.drop_path=1"])
    assert read_config("mae_finetune", ["model.drop_path=0.99"]).model.drop_path == 0.99


def test_drop_path_follows_the_noise():
    """Branches of a sample whose noise is not below the keep probability vanish, the others
    are scaled up by its inverse."""
    model = build(depth=1, drop_path=0.0)
    block = model.blocks[0]
    block.drop_rates = (0.5, 0.5)
    x = to_global(np.random.default_rng(0).normal(size=(3, 7, 48)).astype(np.float32), batch_sbp())
    noise = to_global(np.float32([[0.6, 0.5], [0.1, 0.9], [0.4, 0.49]]), batch_sbp())
    out = block(x, noise).numpy()
    np.testing.assert_array_equal(out[0], x.numpy()[0])
    attention = block.self_attention(block.input_layernorm(x))
    np.testing.assert_allclose(out[1], (x + 2 * attention).numpy()[1], atol=1e-6)
    both = x + 2 * attention
    both = both + 2 * block.mlp(block.post_attention_layernorm(both))
    np.testing.assert_allclose(out[2], both.numpy()[2], atol=1e-6)


def test_cross_entropy_of_numbers_and_of_soft_targets():
    logits = flow.tensor([[0.0, np.log(3.0)], [np.log(7.0), 0.0]])
    labels = flow.tensor([1, 1])
    expected = (np.log(4 / 3) + np.log(8)) / 2
    assert float(cross_entropy(logits, labels).numpy()) == pytest.approx(expected, rel=1e-5)
    soft = flow.tensor([[0.0, 1.0], [0.5, 0.5]])
    expected = (np.log(4 / 3) + 0.5 * (np.log(8 / 7) + np.log(8))) / 2
    assert float(cross_entropy(logits, soft).numpy()) == pytest.approx(expected, rel=1e-5)


def test_cross_entropy_of_many_classes():
    """OneFlow's log_softmax on CPU is off by about 7e-7, see projects/MAE/README.md."""
    rng = np.random.default_rng(0)
    logits, labels = np.float32(rng.normal(size=(512, 1000))), rng.integers(1000, size=512)
    exact = np.log(np.exp(np.float64(logits)).sum(axis=1)) - logits[np.arange(512), labels]
    found = cross_entropy(flow.tensor(logits), flow.tensor(labels)).numpy()
    assert float(found) == pytest.approx(exact.mean(), abs=2e-6)


def test_unknown_pooling():
    with pytest.raises(ConfigError, match="model.pooling must be one of .* not 'max'"):
        build(pooling="max")
