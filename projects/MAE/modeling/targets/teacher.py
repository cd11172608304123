"""Features of a frozen encoder. B batch, C channels, H x W pixels, L patches, D encoder width."""

from __future__ import annotations

import zlib
from typing import Mapping

import numpy as np
import oneflow as flow
from libai.layers import LayerNorm
from oneflow import nn

from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.errors import ConfigError
from libai_ext.layers.patch_embedding import PatchEmbedding
from projects.MAE.modeling.mae import LAYER_NORM_EPS, spread, token, transformer_layers
from projects.MAE.modeling.targets.base import Target, frozen
from projects.MAE.weights.describe import DECODER, Source
from projects.MAE.weights.files import read_weights
from projects.MAE.weights.load import match_and_assign

_SIZES = ("patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio")
# Tensors of a pre-trained model or a classifier that an encoder does not use.
_LEFT_OUT = (*DECODER, "head.", "head_norm.", "fc_norm.")


class TeacherFeatures(Target):
    """The patch tokens of a trained encoder after its last norm, P = D, each normalised to mean 0
    and variance 1; compared by smooth L1 (MaskDistill, Peng et al., 2022, arXiv:2210.10615).

    The teacher sees the whole image, the student only a part. The teacher is on the ranks that
    compute the loss: in a pipeline, those of the last stage.

    Args:
        weights: a run, a checkpoint, or a file or folder of any known style. Patch size and
            channels must equal the model's; position tables are interpolated to the model's grid.
    """

    def __init__(self, weights: str):
        super().__init__()
        self.weights = weights

    def prepare(self, img_size, patch_size: int, in_chans: int) -> None:
        """
        Raises:
            CheckpointError: the weights cannot be read, or lack parts of the encoder.
            ConfigError: their patch size or channels differ from the model's.
        """
        weights, source = read_weights(self.weights)
        sizes = _sizes(source, weights)
        for key, own in (("patch_size", patch_size), ("in_chans", in_chans)):
            if sizes[key] != own:
                raise ConfigError(
                    f"model.target.weights {self.weights} has {key} {sizes[key]}, the model {own}: "
                    "a token of the teacher goes with a patch of the model"
                )
        encoder = _Encoder(img_size, sizes)
        parameters = dict(encoder.named_parameters())
        try:
            matched = match_and_assign(encoder, parameters, weights, _LEFT_OUT, source)
        except CheckpointError as error:
            raise CheckpointError(f"model.target.weights {self.weights}: {error}") from None
        self.teacher = frozen(encoder)
        self.width = sizes["embed_dim"]
        self.data = source.record.data
        self.identity = _checksum(matched.weights, sizes)

    def forward(self, images: flow.Tensor) -> flow.Tensor:
        """[B, C, H, W] to float32 [B, L, D]."""
        tokens = self.teacher(images)[:, 1:].to(flow.float32)
        centred = tokens - tokens.mean(dim=-1, keepdim=True)
        variance = (centred * centred).mean(dim=-1, keepdim=True)
        return centred * flow.rsqrt(variance + LAYER_NORM_EPS)

    def loss(self, prediction: flow.Tensor, target: flow.Tensor) -> flow.Tensor:
        """Smooth L1 with beta 1: d*d / 2 if the difference d is below 1, else d - 1/2."""
        difference = (prediction.to(flow.float32) - target.to(flow.float32)).abs()
        bounded = difference.clamp(max=1.0)
        return (bounded * (difference - 0.5 * bounded)).mean(dim=-1)


class _Encoder(nn.Module):
    """A vision transformer without a head, all of it in the last pipeline stage."""

    def __init__(self, img_size, sizes: Mapping):
        super().__init__()
        width = sizes["embed_dim"]
        self.patch_embed = PatchEmbedding(
            img_size, sizes["patch_size"], sizes["in_chans"], width, layer_idx=-1
        )
        self.cls_token = token(width, layer_idx=-1)
        self.pos_embed = token(width, layer_idx=-1, count=1 + self.patch_embed.num_patches)
        last = [-1] * sizes["depth"]
        self.blocks = transformer_layers(width, sizes["num_heads"], sizes["mlp_ratio"], last)
        self.norm = LayerNorm(width, eps=LAYER_NORM_EPS, layer_idx=-1)

    def forward(self, images: flow.Tensor) -> flow.Tensor:
        """[B, C, H, W] to [B, 1 + L, D]: class token first."""
        patches = self.patch_embed(images)
        tokens = flow.cat([spread(self.cls_token, patches, 1), patches], dim=1) + self.pos_embed
        return self.norm(self.blocks(tokens))


def _sizes(source: Source, weights: Mapping[str, np.ndarray]) -> Mapping:
    """
    Raises:
        ConfigError: the file does not give all sizes, or has no norm after the last block.
    """
    known = source.record.model
    unknown = [key for key in _SIZES if key not in known]
    if unknown:
        raise ConfigError(f"model.target.weights {source.path} does not say {', '.join(unknown)}")
    if "norm.weight" not in weights:
        raise ConfigError(
            f"model.target.weights {source.path} has no norm after its last block: a classifier "
            "that averages its tokens is no teacher, give the weights that it was fine-tuned from"
        )
    return known


def _checksum(weights: Mapping[str, np.ndarray], sizes: Mapping) -> str:
    """CRC-32 of the sizes and the tensors, in the order of their names."""
    total = zlib.crc32(repr([sizes[key] for key in _SIZES]).encode())
    for name in sorted(weights):
        total = zlib.crc32(np.ascontiguousarray(weights[name], np.float32).data, total)
    return f"{total:08x}"
