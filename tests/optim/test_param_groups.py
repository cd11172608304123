from __future__ import annotations

from libai_ext.optim.param_groups import decay_matrices_only
from projects.MAE.modeling.mae import MaskedAutoencoder

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
