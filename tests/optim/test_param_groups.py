from __future__ import annotations

from libai_ext.optim.param_groups import decay_matrices_only, layer_decay
from projects.MAE.modeling.mae import MaskedAutoencoder
from projects.MAE.modeling.vit import ViTClassifier

BLOCK_UNDECAYED = [
    "input_layernorm.weight",
    "input_layernorm.bias",
    "self_attention.query_key_value.bias",
    "self_attention.dense.bias",
    "post_attention_layernorm.weight",
    "post_attention_layernorm.bias",
    "mlp.dense_h_to_4h.bias",
    "mlp.dense_4h_to_h.bias",
]
BLOCK_DECAYED = [
    "self_attention.query_key_value.weight",
    "self_attention.dense.weight",
    "mlp.dense_h_to_4h.weight",
    "mlp.dense_4h_to_h.weight",
]


def test_every_parameter_by_name():
    model = MaskedAutoencoder((8, 8), 4, 3, 8, 2, 2, 8, 1, 2)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    undecayed, decayed = decay_matrices_only(model, weight_decay=0.05)
    assert (undecayed["weight_decay"], decayed["weight_decay"]) == (0.0, 0.05)

    blocks = ["blocks.0.", "blocks.1.", "decoder_blocks.0."]
    assert {names[id(p)] for p in undecayed["params"]} == {
        "patch_embed.proj.bias",
        *(f"{layer}.{kind}" for layer in ("norm", "decoder_norm") for kind in ("weight", "bias")),
        "decoder_embed.bias",
        "decoder_pred.bias",
        *(block + name for block in blocks for name in BLOCK_UNDECAYED),
    }
    assert {names[id(p)] for p in decayed["params"]} == {
        "cls_token",
        "mask_token",
        "patch_embed.proj.weight",
        "decoder_embed.weight",
        "decoder_pred.weight",
        *(block + name for block in blocks for name in BLOCK_DECAYED),
    }


def test_frozen_parameters_are_left_out():
    model = MaskedAutoencoder((8, 8), 4, 3, 8, 1, 2, 8, 1, 2)
    model.cls_token.requires_grad = False
    _, decayed = decay_matrices_only(model, weight_decay=0.05)
    assert all(parameter is not model.cls_token for parameter in decayed["params"])


def test_layer_decay_of_vit_b():
    """Twelve blocks: embeddings at 0.65 ** 13, block k at 0.65 ** (12 - k), the head at 1."""
    model = ViTClassifier((8, 8), 4, 3, 10, embed_dim=12, depth=12, num_heads=2)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr_scale"], group["weight_decay"])
        for group in layer_decay(model, weight_decay=0.05, decay=0.65)
        for parameter in group["params"]
    }
    expected = {
        "cls_token": (0.65**13, 0.0),
        "pos_embed": (0.65**13, 0.0),
        "patch_embed.proj.weight": (0.65**13, 0.05),
        "patch_embed.proj.bias": (0.65**13, 0.0),
        "fc_norm.weight": (1.0, 0.0),
        "fc_norm.bias": (1.0, 0.0),
        "head.weight": (1.0, 0.05),
        "head.bias": (1.0, 0.0),
    }
    for k in range(12):
        scale = 0.65 ** (12 - k)
        expected.update({f"blocks.{k}.{name}": (scale, 0.0) for name in BLOCK_UNDECAYED})
        expected.update({f"blocks.{k}.{name}": (scale, 0.05) for name in BLOCK_DECAYED})
    assert found == expected
