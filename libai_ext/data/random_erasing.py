"""Random erasing (arXiv:1708.04896) like timm's mode "pixel"."""

from __future__ import annotations

import math

import numpy as np

from libai_ext.config.rule_types import number, require, span

ATTEMPTS = 10


class RandomErasing:
    """Fill one rectangle of a normalised array [C, H, W] with normal noise; use it after ToArray.

    Args:
        probability: of erasing in an image.
        area: range of the rectangle's share of the image.
        aspect: smallest height / width; the largest is its inverse.

    Raises:
        ConfigError: an argument is out of its range.
    """

    def __init__(self, probability: float = 0.25, area=(0.02, 1 / 3), aspect: float = 0.3):
        require(self, number(0, 1), probability=probability)
        require(self, span(number(0, 1)), area=area)
        require(self, number(0, 1, above=True), aspect=aspect)
        self.probability = probability
        self.area = tuple(area)
        self.log_aspect = (math.log(aspect), -math.log(aspect))

    def box(self, height: int, width: int, rng: np.random.Generator):
        """(top, left, bottom, right), or None if no attempt fits."""
        for _ in range(ATTEMPTS):
            area = height * width * rng.uniform(*self.area)
            aspect = math.exp(rng.uniform(*self.log_aspect))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < height and w < width:
                top = int(rng.integers(0, height - h + 1))
                left = int(rng.integers(0, width - w + 1))
                return top, left, top + h, left + w
        return None

    def __call__(self, array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= self.probability:
            return array
        channels, height, width = array.shape
        box = self.box(height, width, rng)
        if box is None:
            return array
        top, left, bottom, right = box
        out = array.copy()
        out[:, top:bottom, left:right] = rng.standard_normal(
            (channels, bottom - top, right - left), dtype=np.float32
        )
        return out
