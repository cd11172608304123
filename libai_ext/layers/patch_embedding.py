"""Images to patch tokens and back. B batch, C channels, H x W pixels, p patch, L patches."""

from __future__ import annotations

import oneflow as flow
from oneflow import nn

from libai_ext.errors import ConfigError
from libai_ext.layers.initialize import no_init
from libai_ext.placement import broadcast_sbp, layer_placement


def grid_of(img_size, patch_size: int) -> tuple[int, int]:
    """Patch grid (rows, columns) of an image of ``img_size`` = (H, W).

    Raises:
        ConfigError: a side is not a multiple of the patch.
    """
    height, width = img_size
    if height % patch_size or width % patch_size:
        raise ConfigError(
            f"model.img_size {height}x{width} (height x width) is not divisible by "
            f"patch_size {patch_size}"
        )
    return height // patch_size, width // patch_size


def patchify(images: flow.Tensor, patch_size: int, channels_last: bool) -> flow.Tensor:
    """[B, C, H, W] to [B, L, p*p*C]. The order in a patch is (row, column, channel) with
    ``channels_last`` (as MAE's targets), else (channel, row, column)."""
    batch, channels, height, width = images.shape
    p = patch_size
    x = images.reshape(batch, channels, height // p, p, width // p, p)
    x = x.permute(0, 2, 4, 3, 5, 1) if channels_last else x.permute(0, 2, 4, 1, 3, 5)
    return x.reshape(batch, (height // p) * (width // p), p * p * channels)


class PatchEmbedding(nn.Module):
    """Linear projection of non-overlapping patches.

    The weight has the shape of the equivalent convolution, [D, C, p, p], as in PyTorch's
    checkpoints. It is applied as a matrix product: OneFlow's CPU convolution is 4 to 7 times
    slower.

    Args:
        img_size: (H, W) in pixels.
        embed_dim: D.
        layer_idx: decides the pipeline stage.
    """

    def __init__(
        self, img_size, patch_size: int, in_chans: int, embed_dim: int, *, layer_idx: int = 0
    ):
        super().__init__()
        self.img_size = tuple(img_size)
        self.grid_size = grid_of(img_size, patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.patch_size = patch_size
        self.in_chans = in_chans
        # Bound of the initial weight and bias of PyTorch's convolution.
        self.default_bound = (in_chans * patch_size**2) ** -0.5
        self.layer_idx = layer_idx
        self.proj = _Projection((embed_dim, in_chans, patch_size, patch_size), layer_idx)

    def forward(self, images: flow.Tensor) -> flow.Tensor:
        """[B, C, H, W] to [B, L, D]."""
        if tuple(images.shape[1:]) != (self.in_chans, *self.img_size):
            raise ValueError(
                f"the model takes images of {self.in_chans} x {self.img_size[0]} x "
                f"{self.img_size[1]} (channels x height x width), got {tuple(images.shape[1:])}: "
                "set model.in_chans and model.img_size, or the data's transform"
            )
        return self.proj(patchify(images, self.patch_size, channels_last=False))


class _Projection(nn.Module):
    """Holds ``weight`` and ``bias`` under the names that a convolution would give them."""

    def __init__(self, shape, layer_idx: int):
        super().__init__()
        where = dict(placement=layer_placement(layer_idx), sbp=broadcast_sbp())
        self.weight = nn.Parameter(no_init(flow.empty(*shape, **where)))
        self.bias = nn.Parameter(no_init(flow.empty(shape[0], **where)))

    def forward(self, patches: flow.Tensor) -> flow.Tensor:
        weight = self.weight.reshape(self.weight.shape[0], -1)
        return flow.matmul(patches, weight, transpose_b=True) + self.bias
