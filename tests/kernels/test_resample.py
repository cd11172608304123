"""The native resize gives Pillow's bits, so that a run is the same with and without it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from libai_ext import kernels
from libai_ext.kernels import loader
from libai_ext.kernels.resample import resize_bicubic


def check(pixels, size):
    image = Image.fromarray(pixels)
    np.testing.assert_array_equal(
        np.asarray(resize_bicubic(image, size)),
        np.asarray(image.resize(size, Image.Resampling.BICUBIC)),
        err_msg=f"{image.mode} {image.size} to {size}",
    )


def test_equal_to_pillow_bit_for_bit():
    assert kernels.is_loaded()
    rng = np.random.default_rng(0)
    for number in range(150):
        width, height, *size = map(int, rng.integers(1, 200, 4))
        shape = (height, width, 3) if number % 3 else (height, width)
        check(rng.integers(0, 256, shape, np.uint8), tuple(size))


@pytest.mark.parametrize("size", [(224, 224), (390, 224), (224, 290), (390, 290), (1, 1)])
def test_extremes_are_clipped_as_pillow_does(size):
    """Black and white only: a cubic overshoots at each edge; and sizes that one pass leaves."""
    pixels = np.random.default_rng(1).integers(0, 2, (290, 390, 3), np.uint8) * np.uint8(255)
    check(pixels, size)


def test_a_box_is_resized_as_if_cropped_first():
    rng = np.random.default_rng(3)
    for mode in ("RGB", "L"):
        image = Image.fromarray(rng.integers(0, 256, (90, 130, 3), np.uint8)).convert(mode)
        for _ in range(40):
            (left, right), (top, bottom) = (sorted(rng.integers(0, n, 2)) for n in (130, 90))
            box = tuple(map(int, (left, top, right + 1, bottom + 1)))
            size = tuple(map(int, rng.integers(1, 150, 2)))
            expected = image.crop(box).resize(size, Image.Resampling.BICUBIC)
            np.testing.assert_array_equal(resize_bicubic(image, size, box), expected)
    with pytest.raises(ValueError, match="not within an image of"):
        resize_bicubic(image, (4, 4), (0, 0, 131, 4))


def test_other_modes_and_machines_without_it(monkeypatch):
    pixels = np.random.default_rng(2).integers(0, 256, (20, 30, 4), np.uint8)
    check(pixels, (9, 7))
    monkeypatch.setattr(loader, "_library", None)
    check(pixels[..., :3].copy(), (9, 7))
    with pytest.raises(ValueError):
        resize_bicubic(Image.new("RGB", (4, 4)), (0, 3))
