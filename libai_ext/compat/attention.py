"""LiBai's self-attention on CPU copies its tensors and keeps its matrices for the backward pass.

Symptom: queries, keys, values and results are copied into the order of batched products, and the
attention of each head, [N, N], is kept: the largest part of a step's memory.
Affected: LiBai 0.1.1; OneFlow 0.9.0 has no fused attention with a gradient on CPU. Retire when one
of them does without. The native op works on the packed projection and computes the matrices again.
"""

from __future__ import annotations

import oneflow as flow
from libai.layers.attention import MultiheadAttention

from libai_ext.compat import own_ops

_libai_forward = MultiheadAttention.forward


def self_attention(query_key_value: flow.Tensor, head_size: int, scale: float) -> flow.Tensor:
    """softmax(scale Q K^T) V of each head, on CPU with native kernels.

    Args:
        query_key_value: float32 [B, N, heads * 3 * head_size], in the last dimension query, key and
            value of each head; local, or global with B or heads split.

    Returns:
        [B, N, heads * head_size].

    Raises:
        RuntimeError: the last dimension is not a multiple of ``3 * head_size``.
    """
    inputs = {"query_key_value": query_key_value}
    return own_ops.call("libai_ext_self_attention", inputs, "context", [scale, head_size])


def _forward(self, hidden_states: flow.Tensor, *rest, **options):
    if not _is_plain(self, hidden_states, *rest, *options.values()):
        return _libai_forward(self, hidden_states, *rest, **options)
    packed = self.query_key_value(hidden_states)
    context = self_attention(packed, self.head_size, self.norm_factor)
    return self.output_dropout(self.dense(context))


def _is_plain(layer: MultiheadAttention, hidden_states: flow.Tensor, *options) -> bool:
    """Whether the native op computes what the layer does."""
    dropped = layer.training and layer.dropout.p > 0
    if layer.is_cross_attention or layer.bias_dropout_fusion or dropped:
        return False
    return own_ops.available_for(hidden_states) and not any(map(_is_given, options))


def _is_given(option) -> bool:
    return option is not None and option is not False


def apply() -> None:
    MultiheadAttention.forward = _forward
