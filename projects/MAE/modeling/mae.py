"""Masked autoencoder (He et al., 2021, arXiv:2111.06377) on LiBai's parallel layers.

B batch, C channels, H x W pixels, p patch, L patches, K kept, D encoder and E decoder width,
P values of a patch's target.
"""

from __future__ import annotations

from typing import Callable, Sequence

import oneflow as flow
from libai.config import configurable
from libai.layers import LayerNorm, Linear, TransformerLayer
from libai.models.build import MODEL_ARCH_REGISTRY
from oneflow import nn

from libai_ext.errors import ConfigError
from libai_ext.layers import initialize as init
from libai_ext.layers.patch_embedding import PatchEmbedding
from libai_ext.placement import broadcast_sbp, layer_placement, to_global
from projects.MAE.modeling.loss import masked_mean
from projects.MAE.modeling.masking import gather_tokens, num_kept, random_masking
from projects.MAE.modeling.pos_embed import sincos_pos_embed
from projects.MAE.modeling.targets.base import Target
from projects.MAE.modeling.targets.pixels import Pixels

LAYER_NORM_EPS = 1e-6


@MODEL_ARCH_REGISTRY.register()
class MaskedAutoencoder(nn.Module):
    """An encoder for the visible patches and a light decoder for all patches.

    Args:
        img_size: (H, W) in pixels, each divisible by ``patch_size``.
        in_chans: C.
        embed_dim, depth, num_heads: of the encoder.
        decoder_embed_dim, decoder_depth, decoder_num_heads: of the decoder.
        mlp_ratio: hidden width of an MLP divided by the width of its layer.
        mask_ratio: share of patches to remove, in [0, 1).
        norm_pix_loss: predict pixels normalised per patch.
        target: what is predicted instead of pixels, see :mod:`projects.MAE.modeling.targets`.

    Raises:
        ConfigError: the mask ratio leaves no patch, ``norm_pix_loss`` and ``target`` are both set,
            or the target does not fit the images.
    """

    @configurable
    def __init__(
        self,
        img_size: tuple[int, int],
        patch_size: int,
        in_chans: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        decoder_embed_dim: int,
        decoder_depth: int,
        decoder_num_heads: int,
        mlp_ratio: float = 4.0,
        mask_ratio: float = 0.75,
        norm_pix_loss: bool = False,
        target: Target | None = None,
    ):
        super().__init__()
        self.mask_ratio = mask_ratio
        self.norm_pix_loss = norm_pix_loss
        self.patch_embed = PatchEmbedding(img_size, patch_size, in_chans, embed_dim)
        self.num_patches = self.patch_embed.num_patches
        self.keep = num_kept(self.num_patches, mask_ratio)
        if not 0 < self.keep <= self.num_patches:
            raise ConfigError(
                f"model.mask_ratio {mask_ratio} leaves {self.keep} of {self.num_patches} patches"
            )

        if target is not None and norm_pix_loss:
            raise ConfigError(
                "model.norm_pix_loss=True is for pixels: with a model.target leave it False"
            )
        if type(target) is Pixels:  # checkpoints store norm_pix_loss instead
            raise ConfigError("pixels are the target of a model without model.target")
        self.target = Pixels(norm_pix_loss) if target is None else target
        self.target.prepare(self.patch_embed.img_size, patch_size, in_chans)
        _check_untrained(self.target)

        self.cls_token = token(embed_dim, layer_idx=0)
        self.blocks = transformer_layers(embed_dim, num_heads, mlp_ratio, range(depth))
        self.norm = LayerNorm(embed_dim, eps=LAYER_NORM_EPS, layer_idx=depth - 1)

        self.decoder_embed = Linear(
            embed_dim, decoder_embed_dim, init_method=init.no_init, layer_idx=depth
        )
        self.mask_token = token(decoder_embed_dim, layer_idx=depth)
        self.decoder_blocks = transformer_layers(
            decoder_embed_dim, decoder_num_heads, mlp_ratio, range(depth, depth + decoder_depth)
        )
        self.decoder_norm = LayerNorm(decoder_embed_dim, eps=LAYER_NORM_EPS, layer_idx=-1)
        self.decoder_pred = Linear(
            decoder_embed_dim,
            self.target.width,
            init_method=init.no_init,
            layer_idx=-1,
        )

        # Buffers, not parameters: the tables get no training and no weight decay.
        for name, width, layer_idx in (
            ("pos_embed", embed_dim, 0),
            ("decoder_pos_embed", decoder_embed_dim, depth),
        ):
            table = sincos_pos_embed(self.patch_embed.grid_size, width)
            self.register_buffer(name, to_global(table, broadcast_sbp(), layer_idx))
        init.initialize(self, pretraining_rule(self.patch_embed))

    @classmethod
    def from_config(cls, cfg) -> dict:
        return dict(cfg)

    def forward(
        self, images: flow.Tensor, noise: flow.Tensor | None = None
    ) -> dict[str, flow.Tensor]:
        """One pass over a batch.

        Args:
            images: [B, C, H, W].
            noise: [B, L], from which the masks follow; if not given, it is drawn here.

        Returns:
            In training ``losses``, a float32 scalar; in evaluation ``sample_losses`` [B],
            ``prediction`` [B, L, P] and ``mask`` [B, L] (1 = removed).
        """
        if noise is None:
            noise = flow.rand(
                images.shape[0], self.num_patches, placement=images.placement, sbp=images.sbp
            )
        latent, mask, ids_restore = self.encode(images, noise)
        prediction = self.decode(latent, ids_restore)

        last = prediction.placement
        target = self.target(images.to_global(placement=last))
        mask = mask.to_global(placement=last)
        sample_losses = masked_mean(self.target.loss(prediction, target), mask)
        if self.training:
            return {"losses": sample_losses.mean()}
        return {"sample_losses": sample_losses, "prediction": prediction, "mask": mask}

    def encode(
        self, images: flow.Tensor, noise: flow.Tensor
    ) -> tuple[flow.Tensor, flow.Tensor, flow.Tensor]:
        """Latent [B, 1 + K, D] of the class token and the visible patches, mask [B, L] and
        ids_restore [B, L]."""
        ids_keep, ids_restore, mask = random_masking(noise, self.keep)
        tokens = self.patch_embed(images) + self.pos_embed[:, 1:]
        tokens = self._prepend_class_token(gather_tokens(tokens, ids_keep))
        return self.norm(self.blocks(tokens)), mask, ids_restore

    def features(self, images: flow.Tensor) -> flow.Tensor:
        """Encoder output [B, 1 + L, D] of whole images, nothing masked: class token first."""
        return self.norm(self.blocks(self.embed(images)))

    def embed(self, images: flow.Tensor) -> flow.Tensor:
        """Input tokens [B, 1 + L, D] of the first layer, for whole images."""
        tokens = self.patch_embed(images) + self.pos_embed[:, 1:]
        return self._prepend_class_token(tokens)

    def decode(self, latent: flow.Tensor, ids_restore: flow.Tensor) -> flow.Tensor:
        """Prediction [B, L, P] of every patch."""
        stage = layer_placement(self.decoder_blocks[0].layer_idx)
        tokens = self.decoder_embed(latent.to_global(placement=stage))
        ids_restore = ids_restore.to_global(placement=stage)

        removed = self.num_patches - self.keep
        mask_tokens = spread(self.mask_token, tokens, removed)
        patches = flow.cat([without_class_token(tokens), mask_tokens], dim=1)
        patches = gather_tokens(patches, ids_restore)
        tokens = flow.cat([tokens.narrow(1, 0, 1), patches], dim=1) + self.decoder_pos_embed

        tokens = self.decoder_norm(self.decoder_blocks(tokens))
        return without_class_token(self.decoder_pred(tokens))

    def _prepend_class_token(self, tokens: flow.Tensor) -> flow.Tensor:
        class_token = self.cls_token + self.pos_embed[:, :1]
        return flow.cat([spread(class_token, tokens, 1), tokens], dim=1)


def _check_untrained(target: Target) -> None:
    kept = [name for name, _ in target.named_parameters()] + list(target.state_dict())
    if kept:
        raise TypeError(
            f"{type(target).__name__} would be trained or saved with the model: {kept[0]}; what a "
            "target needs of weights is made a buffer by projects.MAE.modeling.targets.base.frozen"
        )


def pretraining_rule(patch_embed: PatchEmbedding) -> Callable[..., init.Initializer]:
    """The official code's initialisation. Its patch projection is a convolution, whose bias has
    PyTorch's default initialisation."""

    def rule(name: str, parameter: flow.Tensor) -> init.Initializer:
        if name == "patch_embed.proj.bias":
            return init.uniform(patch_embed.default_bound)
        return init.transformer_initializer(name, parameter)

    return rule


def token(dim: int, layer_idx: int, count: int = 1) -> nn.Parameter:
    """Uninitialised tokens [1, count, dim], shared by all samples."""
    return nn.Parameter(
        flow.empty(1, count, dim, placement=layer_placement(layer_idx), sbp=broadcast_sbp())
    )


def without_class_token(tokens: flow.Tensor) -> flow.Tensor:
    """[B, 1 + N, D] to [B, N, D]. On CPU, slices of OneFlow 0.9.0 run on one thread."""
    return tokens.narrow(1, 1, tokens.shape[1] - 1)


def spread(token: flow.Tensor, like: flow.Tensor, count: int) -> flow.Tensor:
    """Expand token [1, 1, D] to [B, count, D], with B and layout of ``like`` [B, N, D].

    Each rank makes the tokens of its own samples, so only the token's gradient is communicated.
    """
    return flow._C.broadcast_like(token, like[:, :1], broadcast_axes=[0]).expand(-1, count, -1)


def transformer_layers(
    dim: int, num_heads: int, mlp_ratio: float, layer_indices: Sequence[int]
) -> nn.Sequential:
    """One layer for each of ``layer_indices``, which determine the pipeline stages."""
    return nn.Sequential(
        *[
            TransformerLayer(
                hidden_size=dim,
                ffn_hidden_size=int(dim * mlp_ratio),
                num_attention_heads=num_heads,
                layernorm_epsilon=LAYER_NORM_EPS,
                init_method=init.no_init,
                layer_idx=layer_idx,
            )
            for layer_idx in layer_indices
        ]
    )
