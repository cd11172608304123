"""Where an encoder looks. B images, H heads, N = 1 + L tokens, class token first."""

from __future__ import annotations

import numpy as np
import oneflow as flow

from projects.MAE.modeling.mae import MaskedAutoencoder


def attention_weights(model: MaskedAutoencoder, images: flow.Tensor) -> list[np.ndarray]:
    """Attention of every encoder layer on whole images, nothing masked: [B, H, N, N] each; each row
    sums to 1."""
    weights = []
    with flow.no_grad():
        tokens = model.embed(images)
        for block in model.blocks:
            # LiBai's layer does not return its attention, so this part is computed twice.
            projection = block.self_attention.query_key_value(block.input_layernorm(tokens))
            weights.append(_softmax_of_products(projection.numpy(), block.num_attention_heads))
            tokens = block(tokens)
    return weights


def last_layer(weights: list[np.ndarray]) -> np.ndarray:
    """Attention of the class token to the patches, per head of the last layer: [B, H, L]."""
    return weights[-1][:, :, 0, 1:]


def rollout(weights: list[np.ndarray]) -> np.ndarray:
    """Attention rollout (Abnar and Zuidema, 2020, arXiv:2005.00928): attention of the class token
    to the patches through all layers, [B, L]. Heads are averaged. In each layer, the residual
    connection has half of the weight."""
    flow_through = np.eye(weights[0].shape[-1])
    for layer in weights:
        mixed = (layer.mean(axis=1) + np.eye(layer.shape[-1])) / 2
        flow_through = mixed @ flow_through
    return flow_through[:, 0, 1:]


def _softmax_of_products(projection: np.ndarray, heads: int) -> np.ndarray:
    """``projection`` is packed like LiBai's: [H, 3, head_dim] in the last dimension."""
    batch, tokens, width = projection.shape
    query_key_value = projection.reshape(batch, tokens, heads, 3, width // 3 // heads)
    query, key = (query_key_value[:, :, :, which].transpose(0, 2, 1, 3) for which in (0, 1))
    scores = query @ key.transpose(0, 1, 3, 2) / np.sqrt(query.shape[-1])
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return scores / scores.sum(axis=-1, keepdims=True)
