"""Stochastic depth with decisions as inputs: they depend on the sample, not on the layout."""

from __future__ import annotations

import numpy as np
import oneflow as flow
from libai.layers import TransformerLayer

from libai_ext.placement import layer_placement


class DropPathNoise:
    """Data field: uniform noise [depth, 2] float32 of one sample, one value for each residual
    branch (attention, MLP) of each layer."""

    name = "path_noise"

    def __init__(self, depth: int):
        self.depth = depth

    def __call__(self, rng: np.random.Generator, key: object) -> np.ndarray:
        return rng.random((self.depth, 2), dtype=np.float32)


class DropPathLayer(TransformerLayer):
    """LiBai's pre-norm transformer layer with stochastic depth (Huang et al., 2016). The
    noise is an input; LiBai's own layer draws per shard, so its decisions depend on the layout.

    Args:
        drop_rates: probability that each residual branch (attention, MLP) of a sample is dropped.
    """

    def __init__(self, *args, drop_rates: tuple[float, float] = (0.0, 0.0), **keywords):
        super().__init__(*args, **keywords)
        self.drop_rates = drop_rates

    def forward(self, hidden_states: flow.Tensor, noise: flow.Tensor | None = None) -> flow.Tensor:
        """[B, N, D] to [B, N, D]; ``noise`` [B, 2] in [0, 1); None: drop nothing."""
        stage = layer_placement(self.layer_idx)
        x = hidden_states.to_global(placement=stage)
        attention, mlp = self.self_attention, self.mlp
        if noise is not None:
            noise = noise.to_global(placement=stage)
        x = x + self._survivors(attention(self.input_layernorm(x)), noise, 0)
        return x + self._survivors(mlp(self.post_attention_layernorm(x)), noise, 1)

    def _survivors(self, out: flow.Tensor, noise: flow.Tensor | None, branch: int) -> flow.Tensor:
        keep = 1.0 - self.drop_rates[branch]
        if noise is None or keep == 1.0:
            return out
        kept = (noise[:, branch : branch + 1] < keep).to(out.dtype) / keep
        return out * kept.unsqueeze(-1)
