"""The models under our names and layouts, in NumPy: what the golden outputs are compared with.

Linear weights are [in, out] and the projection is packed [heads, 3, head_dim], as in LiBai.
"""

from __future__ import annotations

import numpy as np
from scipy.special import erf


def _norm(weights, name, x):
    centered = x - x.mean(-1, keepdims=True)
    scale = np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6)
    return centered / scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _linear(weights, name, x):
    return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _block(weights, name, x, heads):
    batch, tokens, width = x.shape
    packed = _linear(
        weights, f"{name}.self_attention.query_key_value",
        _norm(weights, f"{name}.input_layernorm", x),
    )  # fmt: skip
    packed = packed.reshape(batch, tokens, heads, 3 * width // heads).swapaxes(1, 2)
    query, key, value = np.split(packed, 3, axis=-1)
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(width // heads)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = scores / scores.sum(-1, keepdims=True) @ value
    mixed = mixed.swapaxes(1, 2).reshape(batch, tokens, width)
    x = x + _linear(weights, f"{name}.self_attention.dense", mixed)
    hidden = _linear(
        weights, f"{name}.mlp.dense_h_to_4h", _norm(weights, f"{name}.post_attention_layernorm", x)
    )
    hidden = hidden * (1 + erf(hidden / np.sqrt(2))) / 2
    return x + _linear(weights, f"{name}.mlp.dense_4h_to_h", hidden)


def _blocks(weights, name, x, heads):
    count = len({key.split(".")[1] for key in weights if key.startswith(f"{name}.")})
    for number in range(count):
        x = _block(weights, f"{name}.{number}", x, heads)
    return x


def _encode(weights, images, heads, keep=None):
    kernel = weights["patch_embed.proj.weight"]
    width, channels, patch, _ = kernel.shape
    batch, _, height, breadth = images.shape
    patches = images.reshape(batch, channels, height // patch, patch, breadth // patch, patch)
    patches = patches.transpose(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * patch * patch)
    x = patches @ kernel.reshape(width, -1).T + weights["patch_embed.proj.bias"]
    x = x + weights["pos_embed"][:, 1:]
    if keep is not None:
        x = np.take_along_axis(x, keep[..., None], 1)
    cls = weights["cls_token"] + weights["pos_embed"][:, :1]
    x = np.concatenate([np.repeat(cls, batch, 0), x], 1)
    return _blocks(weights, "blocks", x, heads)


def classify(weights, images, heads):
    """Logits [B, classes] of images [B, C, H, W]; mean pooling where there is an `fc_norm`."""
    x = _encode(weights, images, heads)
    if "fc_norm.weight" in weights:
        return _linear(weights, "head", _norm(weights, "fc_norm", x[:, 1:].mean(1)))
    return _linear(weights, "head", _norm(weights, "norm", x)[:, 0])


def reconstruct(weights, images, keep, restore, heads, decoder_heads):
    """Predicted patches [B, L, P * P * C] from the patches keep [B, K]."""
    x = _norm(weights, "norm", _encode(weights, images, heads, keep))
    x = _linear(weights, "decoder_embed", x)
    removed = restore.shape[1] - keep.shape[1]
    masked = np.broadcast_to(weights["mask_token"], (len(x), removed, x.shape[-1]))
    patches = np.concatenate([x[:, 1:], masked], 1)
    patches = np.take_along_axis(patches, restore[..., None], 1)
    x = np.concatenate([x[:, :1], patches], 1) + weights["decoder_pos_embed"]
    x = _blocks(weights, "decoder_blocks", x, decoder_heads)
    return _linear(weights, "decoder_pred", _norm(weights, "decoder_norm", x))[:, 1:]
