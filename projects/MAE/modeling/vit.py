"""Vision transformer for classification, as MAE fine-tunes it (appendix A.1 of the paper).

B batch, C channels, H x W pixels, L patches, D width, N classes.
"""

from __future__ import annotations

import numpy as np
import oneflow as flow
from libai.config import configurable
from libai.layers import LayerNorm, Linear
from libai.models.build import MODEL_ARCH_REGISTRY
from oneflow import nn

from libai_ext.errors import ConfigError
from libai_ext.layers import initialize
from libai_ext.layers.batch_norm import BatchNorm
from libai_ext.layers.drop_path import DropPathLayer
from libai_ext.layers.patch_embedding import PatchEmbedding
from projects.MAE.modeling.mae import (
    LAYER_NORM_EPS,
    pretraining_rule,
    spread,
    token,
    without_class_token,
)
from projects.MAE.modeling.pos_embed import sincos_pos_embed

POOLINGS = ("mean", "cls")


@MODEL_ARCH_REGISTRY.register()
class ViTClassifier(nn.Module):
    """The encoder of :class:`MaskedAutoencoder` with trainable position embeddings and a head.

    Args:
        num_classes: N.
        pooling: ``"mean"`` of the patch tokens, then ``fc_norm`` and the head; or ``"cls"``: the
            class token after ``norm``.
        drop_path: stochastic depth rate of the last layer; it grows linearly from 0.
        head_std: standard deviation of the head's initial weights.
        init: ``"timm"``, like the official code's training from scratch: matrices, class token and
            position table from N(0, 0.02), the patch projection with PyTorch's default for a
            convolution; or ``"pretraining"``: like :class:`MaskedAutoencoder`.
        batch_norm: put a batch norm before the head, as in the linear probe.
        n_partial: what is trained besides the head and a fresh ``fc_norm``: 0 nothing, 0.5 the MLP
            of the last block, k the last k blocks (and ``norm``), None or ``depth`` everything.
            The rest gets no gradient, and no drop path. (He et al., section 4.3; MAE-code's name.)

    Raises:
        ConfigError: ``pooling`` or ``n_partial`` has none of these values.
    """

    # No weight decay, like 1-D parameters; see libai_ext.optim.param_groups.layer_decay.
    undecayed = ("cls_token", "pos_embed")

    @configurable
    def __init__(
        self,
        img_size: tuple[int, int],
        patch_size: int,
        in_chans: int,
        num_classes: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        pooling: str = "mean",
        drop_path: float = 0.0,
        head_std: float = 2e-5,
        init: str = "timm",
        batch_norm: bool = False,
        n_partial: float | None = None,
    ):
        super().__init__()
        if pooling not in POOLINGS:
            raise ConfigError(f"model.pooling must be one of {POOLINGS}, not {pooling!r}")
        self.pooling = pooling
        self.head_std = head_std
        self.init = init
        self.num_layers = depth + 1
        self.patch_embed = PatchEmbedding(img_size, patch_size, in_chans, embed_dim)
        self.cls_token = token(embed_dim, layer_idx=0)
        self.pos_embed = token(embed_dim, layer_idx=0, count=1 + self.patch_embed.num_patches)
        self.blocks = nn.ModuleList(
            [
                DropPathLayer(
                    hidden_size=embed_dim,
                    ffn_hidden_size=int(embed_dim * mlp_ratio),
                    num_attention_heads=num_heads,
                    layernorm_epsilon=LAYER_NORM_EPS,
                    init_method=initialize.no_init,
                    drop_rates=(float(rate), float(rate)),
                    layer_idx=layer_idx,
                )
                for layer_idx, rate in enumerate(np.linspace(0, drop_path, depth))
            ]
        )
        norm = LayerNorm(embed_dim, eps=LAYER_NORM_EPS, layer_idx=-1)
        if pooling == "mean":
            self.fc_norm = norm
        else:
            self.norm = norm
        if batch_norm:
            self.head_norm = BatchNorm(embed_dim)
        self.head = Linear(embed_dim, num_classes, init_method=initialize.no_init, layer_idx=-1)
        initialize.initialize(self, self._initializer)
        if n_partial is not None and n_partial != depth:
            self._freeze(n_partial)

    @classmethod
    def from_config(cls, cfg) -> dict:
        return dict(cfg)

    def forward(
        self,
        images: flow.Tensor,
        labels: flow.Tensor | None = None,
        path_noise: flow.Tensor | None = None,
    ) -> dict[str, flow.Tensor]:
        """One pass over a batch.

        Args:
            images: [B, C, H, W].
            labels: class numbers [B], or soft targets [B, N]; needed for training.
            path_noise: [B, depth, 2], from which stochastic depth follows; without it nothing is
                dropped.

        Returns:
            In training ``losses``, a scalar; in evaluation ``prediction_scores`` [B, N].
        """
        if not self.training:
            path_noise = None
        logits = self.head(self.features(images, path_noise))
        if not self.training:
            return {"prediction_scores": logits}
        assert labels is not None, "labels are needed for training"
        return {"losses": cross_entropy(logits, labels.to_global(placement=logits.placement))}

    def features(self, images: flow.Tensor, path_noise: flow.Tensor | None = None) -> flow.Tensor:
        """The head's input, [B, D]."""
        pooled = self._pool(self._encode(images, path_noise))
        return self.head_norm(pooled) if hasattr(self, "head_norm") else pooled

    def layer_number(self, name: str) -> int:
        """Layer number of a parameter: 0 for the embeddings, k + 1 for block k, ``num_layers`` for
        the rest."""
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return 0 if name.startswith(("cls_token", "pos_embed", "patch_embed")) else self.num_layers

    def _freeze(self, n_partial: float) -> None:
        depth = len(self.blocks)
        if n_partial not in (0, 0.5, *range(1, depth)):
            raise ConfigError(
                "model.n_partial must be 0, 0.5 or a number of blocks up to "
                f"{depth}, not {n_partial}"
            )
        whole = depth - int(n_partial)  # the first block that is trained as a whole
        trained = ["head.", "fc_norm."] + [f"blocks.{number}." for number in range(whole, depth)]
        if n_partial == 0.5:
            trained += [f"blocks.{depth - 1}.post_attention_layernorm.", f"blocks.{depth - 1}.mlp."]
        if n_partial >= 1:
            trained.append("norm.")
        for name, parameter in self.named_parameters():
            parameter.requires_grad = name.startswith(tuple(trained))
        for number, block in enumerate(self.blocks[:whole]):
            half = n_partial == 0.5 and number == depth - 1
            block.drop_rates = (0.0, block.drop_rates[1] if half else 0.0)

    def embed(self, images: flow.Tensor) -> flow.Tensor:
        """Input tokens [B, 1 + L, D] of the first layer, class token first."""
        patches = self.patch_embed(images)
        return flow.cat([spread(self.cls_token, patches, 1), patches], dim=1) + self.pos_embed

    def _encode(self, images: flow.Tensor, path_noise: flow.Tensor | None) -> flow.Tensor:
        x = self.embed(images)
        for number, block in enumerate(self.blocks):
            x = block(x, None if path_noise is None else path_noise[:, number])
        return x

    def _pool(self, x: flow.Tensor) -> flow.Tensor:
        if self.pooling == "mean":
            return self.fc_norm(without_class_token(x).mean(dim=1))
        return self.norm(x)[:, 0]

    def _initializer(self, name: str, parameter: flow.Tensor) -> initialize.Initializer:
        if name == "head.weight":
            return initialize.normal(self.head_std)
        if self.init == "pretraining":
            if name == "pos_embed":
                table = sincos_pos_embed(self.patch_embed.grid_size, parameter.shape[-1])
                return lambda rng, shape: table
            return pretraining_rule(self.patch_embed)(name, parameter)
        if name.startswith("patch_embed."):
            return initialize.uniform(self.patch_embed.default_bound)
        if parameter.ndim > 1:
            return initialize.normal(0.02)
        return initialize.transformer_initializer(name, parameter)


def cross_entropy(logits: flow.Tensor, labels: flow.Tensor) -> flow.Tensor:
    """Mean cross-entropy of logits [B, N] with class numbers [B] or soft targets [B, N]."""
    log_probabilities = flow.log_softmax(logits, dim=-1)
    if labels.ndim == 1:
        picked = flow.gather(log_probabilities, dim=1, index=labels.unsqueeze(-1))
        return -picked.mean()
    return -(labels * log_probabilities).sum(dim=-1).mean()
