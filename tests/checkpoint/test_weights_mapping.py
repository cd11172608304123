"""Names and layouts of other frameworks to ours and back."""

from __future__ import annotations

import numpy as np
import pytest

from libai_ext.checkpoint import formats
from libai_ext.checkpoint.errors import CheckpointError
from projects.MAE.weights.mapping import find_state_dict, from_ours, recognise, to_ours
from projects.MAE.weights.names import ROWS_BY_OURS, STYLES, split_number, without_alias
from projects.MAE.weights.packing import Heads, pack_qkv, unpack_qkv

HEADS = Heads(3, 2)
GOLDEN_STYLES = {
    "fb_pretrain.pth": "fb",
    "fb_text_line.pth": "fb",
    "fb_encoder_legacy.pth": "fb",
    "fb_finetune.pth": "fb",
    "timm_cls.safetensors": "fb",
    "hf_pretrain": "hf",
    "hf_classifier": "hf",
    "hf5_encoder.bin": "hf5",
}


def _golden_state(golden, name):
    return find_state_dict(formats.load(golden / name))[0]


def _assert_same_bits(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        assert left[name].shape == right[name].shape, name
        assert left[name].tobytes() == right[name].tobytes(), name


@pytest.mark.parametrize(("name", "style"), GOLDEN_STYLES.items())
def test_round_trip_is_bit_exact(golden, name, style):
    state = _golden_state(golden, name)
    assert recognise(state) == style
    weights, left_out = to_ours(state, style, HEADS)
    assert left_out == []
    assert recognise(weights) == "ours"
    back = from_ours(weights, style, HEADS)
    _assert_same_bits({without_alias(key): array for key, array in state.items()}, back)


@pytest.mark.parametrize("style", STYLES)
def test_every_style_carries_the_pretraining_model(golden, style):
    weights, _ = to_ours(_golden_state(golden, "fb_pretrain.pth"), "fb", HEADS)
    state = from_ours(weights, style, HEADS)
    assert recognise(state) == style
    _assert_same_bits(to_ours(state, style, HEADS)[0], weights)


@pytest.mark.parametrize(
    ("width", "decoder_width", "heads", "decoder_heads"),
    [(384, 512, 6, 16), (768, 512, 12, 16), (1024, 512, 16, 16), (1280, 512, 16, 16)],
)
def test_heads_of_published_widths(width, decoder_width, heads, decoder_heads):
    rng = np.random.default_rng(0)
    bias = rng.standard_normal(3 * width).astype(np.float32)
    decoder_bias = rng.standard_normal(3 * decoder_width).astype(np.float32)
    state = {"blocks.0.attn.qkv.bias": bias, "decoder_blocks.0.attn.qkv.bias": decoder_bias}
    weights, _ = to_ours(state, "fb")
    for name, theirs, count in (
        ("blocks", bias, heads),
        ("decoder_blocks", decoder_bias, decoder_heads),
    ):
        ours = weights[f"{name}.0.self_attention.query_key_value.bias"]
        assert ours.tobytes() == pack_qkv(theirs, count).tobytes()
    _assert_same_bits(from_ours(weights, "fb"), state)


def test_the_packing_is_per_head():
    """Ours: [heads, 3, head_dim] on the last axis; PyTorch: [3, heads, head_dim] on the first."""
    heads, dim, width = 3, 4, 12
    theirs = np.arange(3 * width * width).reshape(3 * width, width)
    ours = pack_qkv(theirs, heads)
    assert ours.shape == (width, 3 * width) and ours.flags.c_contiguous
    for part in range(3):
        for head in range(heads):
            for element in range(dim):
                np.testing.assert_array_equal(
                    ours[:, (head * 3 + part) * dim + element],
                    theirs[(part * heads + head) * dim + element],
                )
    np.testing.assert_array_equal(unpack_qkv(ours, heads), theirs)
    np.testing.assert_array_equal(unpack_qkv(pack_qkv(theirs[:, 0], heads), heads), theirs[:, 0])


def test_every_name_of_the_table_is_found_again():
    for style in STYLES:
        theirs = [name for row in ROWS_BY_OURS[style].values() for name in row.theirs]
        assert len(theirs) == len(set(theirs))
        for name in theirs:
            assert split_number(name.replace("#", "17")) == (name, "17" if "#" in name else "")


def test_unknown_heads_are_asked_for():
    bias = np.zeros(36, np.float32)
    with pytest.raises(CheckpointError, match=r"an encoder of width 12 .*384, .*--encoder-heads"):
        to_ours({"blocks.0.attn.qkv.bias": bias}, "fb")
    with pytest.raises(CheckpointError, match=r" a decoder of width 12 .*\(512\).*--decoder-heads"):
        to_ours({"decoder_blocks.0.attn.qkv.bias": bias}, "fb")
    with pytest.raises(CheckpointError, match="5 heads do not divide the width 12"):
        to_ours({"blocks.0.attn.qkv.bias": bias}, "fb", Heads(5))


def test_what_is_not_a_known_style_is_told(golden):
    fb, hf = (_golden_state(golden, name) for name in ("fb_pretrain.pth", "hf_classifier"))
    with pytest.raises(CheckpointError, match=r"several styles\. fb: .*norm1.*; hf: .*query"):
        recognise([*fb, *hf])
    with pytest.raises(CheckpointError, match=r"known style\. Its names: layer1\.0\.conv1\.weight"):
        recognise(["layer1.0.conv1.weight", "fc.weight"])
    with pytest.raises(CheckpointError, match="no blocks with names of a known style"):
        recognise(["cls_token", "pos_embed"])  # ours and fb alike


def test_unknown_names_come_with_the_nearest_known(golden):
    state = dict(_golden_state(golden, "fb_pretrain.pth"))
    state["blocks.1.norm3.weight"] = state.pop("blocks.1.norm1.weight")
    with pytest.raises(
        CheckpointError,
        match=r"blocks\.1\.norm3\.weight \(nearest known: blocks\.1\.norm\d\.weight",
    ):
        to_ours(state, "fb", HEADS)


def test_half_a_projection_is_an_error(golden):
    state = dict(_golden_state(golden, "hf_classifier"))
    del state["vit.encoder.layer.1.attention.attention.key.bias"]
    with pytest.raises(
        CheckpointError, match=r"is there, but encoder\.layer\.1\..*key\.bias is not"
    ):
        to_ours(state, "hf", HEADS)


def test_the_pooler_is_left_out_and_told(golden):
    state = {**_golden_state(golden, "hf_classifier"), "vit.pooler.dense.bias": np.zeros(12)}
    weights, left_out = to_ours(state, "hf", HEADS)
    assert left_out == ["pooler.dense.bias"]
    assert not any("pooler" in name for name in weights)


def test_a_style_without_a_layer_says_so(golden):
    weights, _ = to_ours(_golden_state(golden, "fb_finetune.pth"), "fb", HEADS)
    with pytest.raises(CheckpointError, match=r"hf has no place for fc_norm\..*mean-pooled"):
        from_ours(weights, "hf", HEADS)


def test_ill_shaped_tensors_are_errors():
    with pytest.raises(CheckpointError, match=r"dense\.weight: has the shape \(3,\), not 2"):
        to_ours({"blocks.0.attn.proj.weight": np.zeros(3)}, "fb")
    with pytest.raises(CheckpointError, match="not a query, a key and a value"):
        to_ours({"blocks.0.attn.qkv.bias": np.zeros(4)}, "fb")


def test_wrappers_and_prefixes():
    tensor = np.zeros(1)
    state = {"norm.weight": tensor}
    for tree, wrapper in (
        (state, ""),
        ({"model": state, "epoch": 3}, "model"),
        ({"state_dict": {"module.norm.weight": tensor}}, "state_dict"),
        ({"module.norm.weight": tensor}, ""),
    ):
        found, where = find_state_dict(tree)
        assert (list(found), where) == (["norm.weight"], wrapper)
    for tree, message in (
        ({"model": state, "state_dict": state}, "more than one state dict"),
        ({"epoch": 3}, "no state dict; its keys: epoch"),
        ([tensor], "holds a list"),
        ({"model": {**state, "step": 3}}, "not a tensor: step"),
        ({"model": {**state, 3: tensor}}, "a name that is not text"),
    ):
        with pytest.raises(CheckpointError, match=message):
            find_state_dict(tree)


def test_names_that_fall_together_are_an_error(golden):
    state = _golden_state(golden, "hf_classifier")
    with pytest.raises(CheckpointError, match="differ in a prefix only"):
        to_ours({**state, "layernorm.bias": state["vit.layernorm.bias"]}, "hf", HEADS)
