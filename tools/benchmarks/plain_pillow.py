"""The way of torchvision from an image file to a model's input, in Pillow and NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from libai_ext.data.transforms import RandomResizedCrop

MEAN: Any = np.array([0.485, 0.456, 0.406], np.float32)
STD: Any = np.array([0.229, 0.224, 0.225], np.float32)


def plain(path: str, crop: RandomResizedCrop, rng: np.random.Generator) -> np.ndarray:
    """ImageFolder, RandomResizedCrop, RandomHorizontalFlip, ToTensor and Normalize; of ``crop``,
    only its draws are used."""
    with Image.open(path) as image:
        box = crop.box(image.width, image.height, rng)
        size = (crop.width, crop.height)
        image = image.convert("RGB").crop(box).resize(size, Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = np.ascontiguousarray(np.array(image).transpose(2, 0, 1))
    values = pixels.astype(np.float32) / 255
    return (values - MEAN[:, None, None]) / STD[:, None, None]
