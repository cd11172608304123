"""Each framework's name for a parameter, and how its layout differs from ours.

Styles:
    fb     facebookresearch/mae, Union14M's copy of it, and timm's VisionTransformer
    hf     Hugging Face ViTMAE and ViT, as `save_pretrained` writes them
    hf5    the same models' `state_dict()` in transformers 5, whose modules were renamed
    mm     OpenMMLab's mmpretrain
    ours   this project; LiBai's layer names
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Iterator

# Kinds of row. The name of a layer stands for its `.weight` and `.bias`.
PARAMETER = "parameter"  # one tensor, the same in every style
COPY = "copy"  # a layer whose tensors are the same in every style
LINEAR = "linear"  # PyTorch keeps the weight as [out, in], LiBai as [in, out]
QKV = "qkv"  # linear, packed [3, heads, head_dim] or three layers; ours [heads, 3, head_dim]

STYLES = ("ours", "fb", "hf", "hf5", "mm")

# Kind, then the name in each of STYLES; outside the blocks, hf5 equals hf. "#" is a block's number.
# None: the style has no such layer. Several names: the style has one layer for each.
# fmt: off
_OUTSIDE_BLOCKS = (
    (PARAMETER, "cls_token", "cls_token", "embeddings.cls_token", "cls_token"),
    (PARAMETER, "pos_embed", "pos_embed", "embeddings.position_embeddings", "pos_embed"),
    (COPY, "patch_embed.proj", "patch_embed.proj", "embeddings.patch_embeddings.projection",
     "patch_embed.projection"),
    (COPY, "norm", "norm", "layernorm", "ln1"),
    (COPY, "fc_norm", "fc_norm", None, "ln2"),
    (LINEAR, "head", "head", "classifier", "head.fc"),
    (PARAMETER, "head_norm.running_mean", "head_norm.running_mean", None, "head_norm.running_mean"),
    (PARAMETER, "head_norm.running_var", "head_norm.running_var", None, "head_norm.running_var"),
    (PARAMETER, "mask_token", "mask_token", "decoder.mask_token", "mask_token"),
    (PARAMETER, "decoder_pos_embed", "decoder_pos_embed", "decoder.decoder_pos_embed",
     "decoder_pos_embed"),
    (LINEAR, "decoder_embed", "decoder_embed", "decoder.decoder_embed", "decoder_embed"),
    (COPY, "decoder_norm", "decoder_norm", "decoder.decoder_norm", "decoder_ln1"),
    (LINEAR, "decoder_pred", "decoder_pred", "decoder.decoder_pred", "decoder_pred"),
)
_BLOCK_PREFIXES = (
    ("blocks.#.", "blocks.#.", "encoder.layer.#.", "layers.#.", "layers.#."),
    ("decoder_blocks.#.", "decoder_blocks.#.", "decoder.decoder_layers.#.",
     "decoder.decoder_layers.#.", "decoder_blocks.#."),
)
_INSIDE_BLOCKS = (
    (COPY, "input_layernorm", "norm1", "layernorm_before", "layernorm_before", "ln1"),
    (QKV, "self_attention.query_key_value", "attn.qkv",
     ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
     ("attention.q_proj", "attention.k_proj", "attention.v_proj"), "attn.qkv"),
    (LINEAR, "self_attention.dense", "attn.proj", "attention.output.dense", "attention.o_proj",
     "attn.proj"),
    (COPY, "post_attention_layernorm", "norm2", "layernorm_after", "layernorm_after", "ln2"),
    (LINEAR, "mlp.dense_h_to_4h", "mlp.fc1", "intermediate.dense", "mlp.fc1", "ffn.layers.0.0"),
    (LINEAR, "mlp.dense_4h_to_h", "mlp.fc2", "output.dense", "mlp.fc2", "ffn.layers.1"),
)
# fmt: on

# Other tensors in a style's files, which no model of ours has.
LEFT_OUT = frozenset(
    {
        "pooler.dense.weight",  # of ViTModel: comes after the cls token, not trained by MAE
        "pooler.dense.bias",
        "head_norm.num_batches_tracked",  # of the official linear probe: not used
    }
)
# Projection heads of DINO and iBOT; their teachers are encoders like ours.
LEFT_OUT_PREFIXES = ("head.mlp.", "head.last_layer.")

# The official linear probe's head: a batch norm and a linear layer in a Sequential.
PROBE_NORM, PROBE_HEAD = "head.0.", "head.1."

# Replaced before a name is looked up. transformers 5 saves the decoder as "decoder_encoder", since
# its renaming of the encoder's blocks changes `decoder_layers` as well.
_PREFIX_ALIASES = (
    ("backbone.", ""),
    ("neck.ln1.", "decoder_ln1."),
    ("neck.bn.", "head_norm."),
    ("neck.", ""),
    ("head.layers.head.", "head.fc."),
    ("vit.", ""),
    ("decoder.decoder_encoder.layer.", "decoder.decoder_layers."),
    (PROBE_NORM, "head_norm."),
    (PROBE_HEAD, "head."),
)

_BLOCK_NUMBER = re.compile(r"\.(0|[1-9][0-9]{0,3})\.")


@dataclass(frozen=True)
class Row:
    """One of our parameters and its names in a style; "#" is the number of a block."""

    ours: str
    theirs: tuple[str, ...]
    kind: str


def _layers() -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """The kind of each layer or parameter, and its names in each style."""
    for kind, *names in _OUTSIDE_BLOCKS:
        ours, fb, hf, mm = names
        styles = (ours, fb, hf, hf, mm)
        yield kind, [() if name is None else (name,) for name in styles]
    for prefixes in _BLOCK_PREFIXES:
        for kind, *inner in _INSIDE_BLOCKS:
            parts = [(name,) if isinstance(name, str) else name for name in inner]
            yield kind, [tuple(p + n for n in part) for p, part in zip(prefixes, parts)]


def _rows(style: str) -> Iterator[Row]:
    for kind, names in _layers():
        (ours,), theirs = names[0], names[STYLES.index(style)]
        if not theirs:
            continue
        if kind == PARAMETER:
            yield Row(ours, theirs, COPY)
        else:
            yield Row(f"{ours}.weight", tuple(f"{name}.weight" for name in theirs), kind)
            bias_kind = QKV if kind == QKV else COPY
            yield Row(f"{ours}.bias", tuple(f"{name}.bias" for name in theirs), bias_kind)


ROWS_BY_OURS = {style: {row.ours: row for row in _rows(style)} for style in STYLES}
ROWS_BY_THEIRS = {
    style: {name: row for row in rows.values() for name in row.theirs}
    for style, rows in ROWS_BY_OURS.items()
}


def without_alias(name: str) -> str:
    """The name as it is in the table."""
    for prefix, replacement in _PREFIX_ALIASES:
        if name.startswith(prefix):
            name = replacement + name[len(prefix) :]
    return name


def split_number(name: str) -> tuple[str, str]:
    """("blocks.#.norm1.bias", "3") of "blocks.3.norm1.bias"; "" if there is no number."""
    match = _BLOCK_NUMBER.search(name)
    if match is None:
        return name, ""
    return f"{name[: match.start()]}.#.{name[match.end() :]}", match.group(1)
