"""Histograms of oriented gradients (MaskFeat, Wei et al., 2021, arXiv:2112.09133).

B batch, C channels, H x W pixels, p patch, L patches, c cell, r = p / c cells on a patch's side,
K bins.
"""

from __future__ import annotations

import math

import oneflow as flow

from libai_ext.errors import ConfigError
from projects.MAE.modeling.targets.base import Target

EPS = 1e-5  # scikit-image's


class Hog(Target):
    """The histograms of a patch's cells, P = r*r*C*K in the order (row, column, channel, bin).

    Equal, for each channel, to scikit-image's ``hog(channel, orientations=K, pixels_per_cell=(c,
    c), cells_per_block=(1, 1), block_norm="L2")``. A gradient is the difference of the next and the
    previous pixel, zero at the image's border. Each pixel adds the magnitude of its gradient to one
    bin of unsigned orientation. Each cell is normalised to length 1. MaskFeat's own code differs:
    it has Sobel filters, mirrored borders and a Gaussian window on the votes.

    Args:
        bins: K, over 180 degrees.
        cell: c in pixels.
    """

    def __init__(self, bins: int = 9, cell: int = 8):
        super().__init__()
        self.bins = bins
        self.cell = cell

    def prepare(self, img_size, patch_size: int, in_chans: int) -> None:
        """
        Raises:
            ConfigError: a patch does not hold whole cells.
        """
        if patch_size % self.cell:
            raise ConfigError(
                f"model.target.cell {self.cell} does not divide model.patch_size {patch_size}: a "
                "patch is made of whole cells"
            )
        self.side = patch_size // self.cell
        self.width = self.side**2 * in_chans * self.bins

    def forward(self, images: flow.Tensor) -> flow.Tensor:
        """[B, C, H, W] to float32 [B, L, r*r*C*K]."""
        images = images.to(flow.float32)
        votes = _votes(_differences(images, 2), _differences(images, 3), self.bins)
        histograms = flow.stack([self._cells(share) for share in votes], dim=-1)
        length = (histograms * histograms).sum(dim=-1, keepdim=True) + EPS**2
        return self._patches(histograms * flow.rsqrt(length))

    def _cells(self, x: flow.Tensor) -> flow.Tensor:
        """Means [B, C, H / c, W / c] over the cells."""
        batch, channels, height, width = x.shape
        c = self.cell
        return x.reshape(batch, channels, height // c, c, width // c, c).mean(dim=(3, 5))

    def _patches(self, cells: flow.Tensor) -> flow.Tensor:
        batch, channels, rows, columns, bins = cells.shape
        r = self.side
        x = cells.reshape(batch, channels, rows // r, r, columns // r, r, bins)
        x = x.permute(0, 2, 4, 3, 5, 1, 6)
        return x.reshape(batch, (rows // r) * (columns // r), self.width)


def _differences(x: flow.Tensor, dim: int) -> flow.Tensor:
    """Next minus previous pixel along ``dim``, zero for the first and the last one."""
    inner = x.shape[dim] - 2
    border = flow.zeros_like(x.narrow(dim, 0, 1))
    return flow.cat([border, x.narrow(dim, 2, inner) - x.narrow(dim, 0, inner), border], dim=dim)


def _votes(down: flow.Tensor, right: flow.Tensor, bins: int) -> list[flow.Tensor]:
    """For each bin: magnitude of each pixel's gradient if its orientation is in the bin, else 0.

    A sign shows on which side of a bin's limit a gradient is: no angle is computed.
    """
    magnitude = flow.sqrt(down * down + right * right)
    # Orientations have no sign: gradients that point up are turned by 180 degrees.
    turned = _is(down < 0) + _is(down == 0) * _is(right < 0)
    down, right = down * (1 - 2 * turned), right * (1 - 2 * turned)
    limits = [math.pi * number / bins for number in range(1, bins)]
    beyond = [_is(math.cos(a) * down - math.sin(a) * right >= 0) for a in limits]
    shares = [1 - beyond[0]]
    shares += [one - another for one, another in zip(beyond, beyond[1:])]
    return [magnitude * share for share in [*shares, beyond[-1]]]


def _is(condition: flow.Tensor) -> flow.Tensor:
    return condition.to(flow.float32)
