"""Pictures of what a masked autoencoder does: original, masked, reconstruction."""

from __future__ import annotations

from typing import Sequence

import numpy as np
from PIL import Image

# Column titles for :func:`panels`.
TITLES = ("original", "masked", "reconstruction", "reconstruction + visible")
_MARGIN = 2
_GREY, _WHITE = 0.5, 1.0


def unpatchify(patches: np.ndarray, grid: Sequence[int], channels: int) -> np.ndarray:
    """[B, L, p*p*C] to images [B, H, W, C]."""
    rows, columns = grid
    p = int((patches.shape[-1] // channels) ** 0.5)
    x = patches.reshape(-1, rows, columns, p, p, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, rows * p, columns * p, channels)


def as_picture(values: np.ndarray, data, channels: Sequence[int] | None = None) -> np.ndarray:
    """Normalised values [..., C] as colours or grey [..., 3 or 1] in [0, 1].

    If ``data.mode`` is a number of channels, the range of their values is not known:
    ``mean - 2 std`` is black, ``mean + 2 std`` is white.

    Args:
        data: ``mode``, and ``mean`` and ``std`` of the data, per channel.
        channels: three or one of a number of channels; None: the first three, or the first of two.
    """
    if not isinstance(data.mode, int):
        return np.clip(values * np.asarray(data.std) + np.asarray(data.mean), 0, 1)
    if channels is None:
        channels = range(3 if values.shape[-1] >= 3 else 1)
    return np.clip(values[..., list(channels)] / 4 + 0.5, 0, 1)


def panels(
    model,
    data,
    images: np.ndarray,
    prediction: np.ndarray,
    mask: np.ndarray,
    shown: Sequence[int] | None = None,
) -> np.ndarray:
    """Four pictures of each sample: original, masked, reconstruction, reconstruction with the
    visible patches kept.

    Args:
        model: the masked autoencoder. Its target turns a prediction into pixels: see ``as_pixels``
            of :class:`projects.MAE.modeling.targets.base.Target`.
        data, shown: see :func:`as_picture`.
        images: the model's input [B, C, H, W].
        prediction: the model's output [B, L, P].
        mask: [B, L], 1 = removed.

    Returns:
        float [B, 4, H, W, 3 or 1] in [0, 1].
    """
    batch, channels, height, width = images.shape
    grid = rows, columns = model.patch_embed.grid_size
    p = height // rows
    original = images.transpose(0, 2, 3, 1)
    patches = (
        original.reshape(batch, rows, p, columns, p, channels)
        .transpose(0, 1, 3, 2, 4, 5)
        .reshape(batch, rows * columns, -1)
    )
    prediction = model.target.as_pixels(prediction, patches)
    removed = mask[..., None].astype(bool)

    def picture(values):
        return as_picture(unpatchify(values, grid, channels), data, shown)

    hidden = np.broadcast_to(removed, (batch, rows * columns, p * p)).astype(float)
    masked = np.where(unpatchify(hidden, grid, 1) > 0, _GREY, picture(patches))
    joined = np.where(removed, prediction, patches)
    return np.stack([picture(patches), masked, picture(prediction), picture(joined)], axis=1)


def tile(pictures: np.ndarray) -> Image.Image:
    """Join the pictures of :func:`panels` into one image, one row per sample.

    Args:
        pictures: [B, P, H, W, C] in [0, 1].
    """
    batch, count, height, width, channels = pictures.shape
    canvas = np.full(
        (batch * (height + _MARGIN) + _MARGIN, count * (width + _MARGIN) + _MARGIN, channels),
        _WHITE,
    )
    for row, sample in enumerate(pictures):
        top = _MARGIN + row * (height + _MARGIN)
        for column, picture in enumerate(sample):
            left = _MARGIN + column * (width + _MARGIN)
            canvas[top : top + height, left : left + width] = picture
    pixels = np.round(canvas * 255).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
