"""Image transforms on Pillow and NumPy. Each is called with an image and the sample's generator.
An image is a Pillow image or a :class:`libai_ext.data.channels.ChannelImage`.

Geometry follows torchvision's operators of the same names.
"""

from __future__ import annotations

import math
from typing import Callable, Sequence

import numpy as np
from PIL import Image

from libai_ext.config.rule_types import number, one_of, require, span
from libai_ext.kernels.resample import is_native, resize_bicubic, resize_to_floats

_INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def resampling(owner: object, interpolation: str) -> Image.Resampling:
    """
    Args:
        owner: the transform whose argument it is.

    Raises:
        ConfigError: no interpolation has this name.
    """
    require(owner, one_of(*_INTERPOLATIONS), interpolation=interpolation)
    return _INTERPOLATIONS[interpolation]


class Compose:
    """Apply transforms in turn.

    A random crop, a random flip and the conversion to an array, in this order, run in one pass,
    with the same draws and the same bits.
    """

    def __init__(self, transforms: Sequence):
        self.transforms = list(transforms)
        self._steps = list(transforms)
        for i in range(len(self._steps) - 2):
            if _CropFlipToArray.joins(*self._steps[i : i + 3]):
                self._steps[i : i + 3] = [_CropFlipToArray(*self._steps[i : i + 3])]
                break  # arrays are not cropped

    def __call__(self, image: Image.Image, rng: np.random.Generator):
        for step in self._steps:
            image = step(image, rng)
        return image


class Resize:
    """To (height, width); an int scales the shorter side to it, keeping the proportions."""

    def __init__(self, size, interpolation: str = "bicubic"):
        self.size = size
        self.interpolation = resampling(self, interpolation)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        if isinstance(self.size, int):
            target = _scaled(image, self.size, min(image.size))
        else:
            target = (self.size[1], self.size[0])
        return _resize(image, target, self.interpolation)


class CenterCrop:
    """The central (height, width) of an image, padded with black."""

    def __init__(self, size):
        self.height, self.width = size

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        left = round((image.width - self.width) / 2)
        top = round((image.height - self.height) / 2)
        return image.crop((left, top, left + self.width, top + self.height))


class EvalCrop:
    """The official evaluation: a bicubic resize with a margin, then a central crop.

    The margin is that of 256 pixels around 224 for inputs up to 224, and none above. A square input
    is the centre of the image, not distorted, as published. For other inputs, the crop has the
    image's aspect ratio, limited to the range between a square's and the input's. It is then
    resized to the input, as in a random resized crop. So it loses no more of the image than a
    square crop or a crop of the input's aspect ratio.
    """

    def __init__(self, size, interpolation: str = "bicubic"):
        share = 224 / 256 if max(size) <= 224 else 1.0
        self.cover = [int(side / share) for side in size]
        self.interpolation = resampling(self, interpolation)
        self.crop = CenterCrop(size)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        return self.crop(_resize(image, self._target(*image.size), self.interpolation), rng)

    def _target(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) to resize an image to. In integers: 49 * (256 / 49) is less than 256."""
        rows, columns = self.cover
        if width > height and width * rows > height * columns:
            return width * min(self.cover) // height, rows
        if width < height and width * rows < height * columns:
            return columns, height * min(self.cover) // width
        return columns, rows


def _resize(image: Image.Image, size: tuple[int, int], interpolation) -> Image.Image:
    if interpolation == Image.Resampling.BICUBIC:
        return resize_bicubic(image, size)
    return image.resize(size, interpolation)


def _scaled(image: Image.Image, numerator: int, denominator: int) -> tuple[int, int]:
    """(width, height) times a fraction, rounded down, at least 1. In integers:
    49 * (256 / 49) is less than 256."""
    width, height = (max(1, side * numerator // denominator) for side in image.size)
    return width, height


class RandomResizedCrop:
    """A crop of random area and aspect ratio, resized to (height, width).

    Args:
        scale: range of the crop's share of the area.
        ratio: range of its width / height.
        clip: draw once and clip the crop at the borders, as the official linear probe (after the
            TPU code of BYOL and MAE). Else, as torchvision, draw up to ten times until the crop
            fits into the image; if none fits, take the largest central crop of an allowed ratio.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(
        self,
        size,
        scale=(0.2, 1.0),
        ratio=(3 / 4, 4 / 3),
        interpolation: str = "bicubic",
        clip: bool = False,
    ):
        require(self, span(number(0, 1, above=True)), scale=scale)
        require(self, span(number(0, above=True)), ratio=ratio)
        self.height, self.width = size
        self.scale = tuple(scale)
        self.ratio = tuple(ratio)
        self.interpolation = resampling(self, interpolation)
        self.clip = clip

    def box(self, width: int, height: int, rng: np.random.Generator):
        """(left, top, right, bottom) within an image of width x height."""
        log_ratio = np.log(self.ratio)
        for _ in range(10):
            area = width * height * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(*log_ratio))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if self.clip:
                w, h = min(w, width), min(h, height)
            if 0 < w <= width and 0 < h <= height:
                left = int(rng.integers(0, width - w + 1))
                top = int(rng.integers(0, height - h + 1))
                return left, top, left + w, top + h
        # No crop fits: the largest central one of an allowed ratio.
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h

    def reduction(self, width: int, height: int, rng: Callable[[], np.random.Generator]) -> int:
        """The largest of 8, 4 and 2 so that the crop of an image of 1 / 8, 1 / 4 or 1 / 2 of this
        size (rounded up) has its final size or more: to reduce the image before loses no detail. 1
        if there is none.

        Args:
            rng: gives a new generator of the sample, as the crop will have it.
        """
        for by in (8, 4, 2):
            small = -(-width // by), -(-height // by)
            if small[0] >= self.width and small[1] >= self.height:
                left, top, right, bottom = self.box(*small, rng())
                if right - left >= self.width and bottom - top >= self.height:
                    return by
        return 1

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        # Crop first, as torchvision does: resampling must not use pixels outside the crop.
        box = self.box(image.width, image.height, rng)
        size = (self.width, self.height)
        if self.interpolation == Image.Resampling.BICUBIC:
            return resize_bicubic(image, size, box)
        return image.crop(box).resize(size, self.interpolation)


class RandomHorizontalFlip:
    """Mirror with probability ``p``."""

    def __init__(self, p: float = 0.5):
        require(self, number(0, 1), p=p)
        self.p = p

    def draw(self, rng: np.random.Generator) -> bool:
        """Whether to mirror."""
        return rng.random() < self.p

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        if self.draw(rng):
            return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image


class ToArray:
    """float32 [C, H, W], normalised: ``(value / 255 - mean) / std`` per channel; for images of any
    number of channels with their divisor in place of 255."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        means, stds = np.asarray(mean, np.float64), np.asarray(std, np.float64)
        self.scale = (1 / (255 * stds)).astype(np.float32)[:, None, None]
        self.shift = (-means / stds).astype(np.float32)[:, None, None]

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        self.check(image)
        pixels = np.asarray(image)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        # Transpose the bytes, not the floats: NumPy is slow along an axis of three.
        out = np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32)
        out *= self.scale * np.float32(255 / getattr(image, "divisor", 255))
        out += self.shift
        return out

    def check(self, image: Image.Image) -> None:
        """
        Raises:
            ValueError: the number of channels differs from that of the statistics.
        """
        channels = len(image.getbands())
        if channels != len(self.scale):
            raise ValueError(
                f"the image has {channels} channels, data.mean and data.std have {len(self.scale)}"
            )


class _CropFlipToArray:
    """RandomResizedCrop, RandomHorizontalFlip and ToArray, in one pass of the native kernel."""

    def __init__(self, crop: RandomResizedCrop, flip: RandomHorizontalFlip, to_array: ToArray):
        self.crop, self.flip, self.to_array = crop, flip, to_array

    @staticmethod
    def joins(*transforms) -> bool:
        """Whether this class can replace these transforms."""
        return (
            tuple(map(type, transforms)) == (RandomResizedCrop, RandomHorizontalFlip, ToArray)
            and transforms[0].interpolation == Image.Resampling.BICUBIC
        )

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        image.load()
        if not is_native(image):
            return self.to_array(self.flip(self.crop(image, rng), rng), rng)
        self.to_array.check(image)
        box = self.crop.box(image.width, image.height, rng)
        size = (self.crop.width, self.crop.height)
        scale, shift = self.to_array.scale, self.to_array.shift
        return resize_to_floats(image, size, box, self.flip.draw(rng), scale, shift)
