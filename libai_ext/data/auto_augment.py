"""RandAugment (arXiv:1909.13719) with the operations and levels of timm 0.3.2.

timm's ``rand-m9-mstd0.5-inc1`` is ``RandAugment(mean)``; the official fine-tuning uses it.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Callable, NamedTuple, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from libai_ext.config.rule_types import number, require, whole
from libai_ext.data.channels import ChannelImage
from libai_ext.data.transforms import resampling
from libai_ext.errors import DataError

MAX_LEVEL = 10.0


class Paint(NamedTuple):
    """How geometric operations resample, and the colour of pixels outside the image."""

    resample: int
    fillcolor: Any  # a number for one channel, a tuple for more

    def affine(self, image: Image.Image, matrix) -> Image.Image:
        return image.transform(
            image.size, Image.Transform.AFFINE, matrix, self.resample, fillcolor=self.fillcolor
        )


class Operation(NamedTuple):
    """``argument`` converts a level in [0, 10] and a sign; ``apply`` takes the result."""

    name: str
    argument: Callable[[float, int], Any]
    apply: Callable[[Image.Image, Any, Paint], Image.Image]


def _nothing(level, sign):
    return None


def _signed(largest, level, sign):
    return sign * (level / MAX_LEVEL) * largest


def _bits_kept(level, sign):
    return int(level / MAX_LEVEL * 4)


def _threshold(level, sign):
    return int(level / MAX_LEVEL * 256)


def _added(level, sign):
    return int(level / MAX_LEVEL * 110)


def _factor(level, sign):
    return level / MAX_LEVEL * 1.8 + 0.1


# "Increasing": a higher level changes the image more, for every operation.


def _bits_kept_increasing(level, sign):
    return 4 - _bits_kept(level, sign)


def _threshold_increasing(level, sign):
    return 256 - _threshold(level, sign)


def _factor_increasing(level, sign):
    return 1.0 + sign * (level / MAX_LEVEL * 0.9)


def _plain(function, image, nothing, paint):
    return function(image)


def _with_number(function, image, number, paint):
    return function(image, number)


def _enhance(enhancer, image, factor, paint):
    return enhancer(image).enhance(factor)


def _rotate(image, degrees, paint):
    return image.rotate(degrees, paint.resample, fillcolor=paint.fillcolor)


def _solarize_add(image, added, paint):
    table = [min(255, value + added) if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


def _shear_x(image, factor, paint):
    return paint.affine(image, (1, factor, 0, 0, 1, 0))


def _shear_y(image, factor, paint):
    return paint.affine(image, (1, 0, 0, factor, 1, 0))


def _translate_x(image, share, paint):
    return paint.affine(image, (1, 0, share * image.width, 0, 1, 0))


def _translate_y(image, share, paint):
    return paint.affine(image, (1, 0, 0, 0, 1, share * image.height))


def operations(increasing: bool = True) -> list[Operation]:
    """The fifteen operations of timm's RandAugment, in its order."""
    bits = _bits_kept_increasing if increasing else _bits_kept
    threshold = _threshold_increasing if increasing else _threshold
    factor = _factor_increasing if increasing else _factor
    return [
        Operation("AutoContrast", _nothing, partial(_plain, ImageOps.autocontrast)),
        Operation("Equalize", _nothing, partial(_plain, ImageOps.equalize)),
        Operation("Invert", _nothing, partial(_plain, ImageOps.invert)),
        Operation("Rotate", partial(_signed, 30.0), _rotate),
        Operation("Posterize", bits, partial(_with_number, ImageOps.posterize)),
        Operation("Solarize", threshold, partial(_with_number, ImageOps.solarize)),
        Operation("SolarizeAdd", _added, _solarize_add),
        Operation("Color", factor, partial(_enhance, ImageEnhance.Color)),
        Operation("Contrast", factor, partial(_enhance, ImageEnhance.Contrast)),
        Operation("Brightness", factor, partial(_enhance, ImageEnhance.Brightness)),
        Operation("Sharpness", factor, partial(_enhance, ImageEnhance.Sharpness)),
        Operation("ShearX", partial(_signed, 0.3), _shear_x),
        Operation("ShearY", partial(_signed, 0.3), _shear_y),
        # Shares of the image's size. timm's "translate_const" is for AutoAugment's absolute
        # translations, which RandAugment does not use.
        Operation("TranslateX", partial(_signed, 0.45), _translate_x),
        Operation("TranslateY", partial(_signed, 0.45), _translate_y),
    ]


class RandAugment:
    """``num_ops`` operations, drawn with replacement; each is applied with a probability.

    Args:
        mean: of the data, per channel, in [0, 1]: the colour of pixels outside the image.
        magnitude: level of the operations, 0 to 10.
        magnitude_std: each use of an operation draws its level from N(magnitude, magnitude_std).
        increasing: the variants whose strength grows with the level (timm's ``inc1``).
        probability: of applying each drawn operation.

    Called with an image of any number of channels, it raises :class:`DataError`: its operations are
    those of colours.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(
        self,
        mean: Sequence[float],
        magnitude: float = 9,
        magnitude_std: float = 0.5,
        num_ops: int = 2,
        increasing: bool = True,
        probability: float = 0.5,
        interpolation: str = "bicubic",
    ):
        require(self, number(0, MAX_LEVEL), magnitude=magnitude)
        require(self, number(0), magnitude_std=magnitude_std)
        require(self, whole(0), num_ops=num_ops)
        require(self, number(0, 1), probability=probability)
        self.magnitude = magnitude
        self.magnitude_std = magnitude_std
        self.num_ops = num_ops
        self.probability = probability
        self.operations = operations(increasing)
        color = tuple(min(255, round(255 * value)) for value in mean)
        self.paint = Paint(resampling(self, interpolation), color if len(color) > 1 else color[0])

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        if isinstance(image, ChannelImage):
            raise DataError(
                f"RandAugment is for 8-bit images with data.mode RGB or L, not {image.mode}: take "
                "it out of dataloader.train.dataset.transform.transforms"
            )
        for operation, argument in self.draw(rng):
            image = operation.apply(image, argument, self.paint)
        return image

    def draw(self, rng: np.random.Generator) -> list[tuple[Operation, Any]]:
        """The operations to apply, with their arguments."""
        drawn = []
        for _ in range(self.num_ops):
            operation = self.operations[int(rng.integers(len(self.operations)))]
            applied = rng.random() < self.probability
            level = rng.normal(self.magnitude, self.magnitude_std)
            sign = 1 if rng.random() < 0.5 else -1
            if applied:
                argument = operation.argument(float(np.clip(level, 0, MAX_LEVEL)), sign)
                drawn.append((operation, argument))
        return drawn
