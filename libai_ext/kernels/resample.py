"""Pillow's bicubic resize at several times its speed, with the same bits."""

from __future__ import annotations

import ctypes

import numpy as np
from PIL import Image

from libai_ext.kernels import loader

_MODES = ("RGB", "L")


def resize_bicubic(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """``image.resize(size, BICUBIC)``, ``size`` = (width, height).

    By the native kernel for 8-bit RGB and grey images where it is loaded, else by Pillow.
    """
    library = loader.library()
    if library is None or image.mode not in _MODES or min(*size, *image.size) < 1:
        return image.resize(size, Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    width, height = size
    out = np.empty((height, width, *pixels.shape[2:]), np.uint8)
    sizes = [image.height, image.width, len(image.mode), height, width]
    library.libai_ext_resize_bicubic(
        pixels.ctypes.data_as(ctypes.c_void_p),
        *map(ctypes.c_int64, sizes),
        out.ctypes.data_as(ctypes.c_void_p),
    )
    return Image.fromarray(out)
