"""Draws a confusion matrix."""

from __future__ import annotations

from typing import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from libai_ext.text import printable

# With more classes, a cell is a coloured square without its count.
MAX_WITH_NUMBERS = 40
_SIDE = 1200
_GAP = 8
_WHITE, _BLACK, _LINE = (255, 255, 255), (20, 20, 20), (210, 210, 210)
_DARK = np.array((8, 48, 107))


def draw(confusion: np.ndarray, classes: Sequence[str]) -> Image.Image:
    """RGB image: a row per true class, a column per predicted class. A darker cell is a larger
    share of its row.

    Args:
        confusion: counts [K, K].
        classes: K names, shown for up to ``MAX_WITH_NUMBERS`` classes.
    """
    count = len(classes)
    numbers = count <= MAX_WITH_NUMBERS
    font = ImageFont.load_default()
    if numbers:
        widest = max(_width(font, str(value)) for value in np.unique(confusion).tolist())
        cell = max(24, widest + 2 * _GAP)
        names = [_shortened(printable(name)) for name in classes]
        margin = max(_width(font, name) for name in names) + 2 * _GAP
    else:
        cell = max(1, _SIDE // count)
        names, margin = [], 2 * _GAP
    caption = _height(font) + 2 * _GAP
    left, top = margin + caption, margin + caption
    side = count * cell
    image = Image.new("RGB", (left + side + _GAP, top + side + _GAP), _WHITE)
    image.paste(_cells(confusion, cell), (left, top))

    pen = ImageDraw.Draw(image)
    _centered(pen, font, (left + side / 2, caption / 2), "predicted")
    _rotated(image, font, (caption / 2, top + side / 2), "true")
    for number, name in enumerate(names):
        middle = number * cell + cell / 2
        _centered(pen, font, (caption + margin / 2, top + middle), name)
        _rotated(image, font, (left + middle, caption + margin / 2), name)
    if numbers:
        shares = _shares(confusion)
        for row, column in np.ndindex(count, count):
            place = left + column * cell + cell / 2, top + row * cell + cell / 2
            color = _WHITE if shares[row, column] > 0.3 else _BLACK
            _centered(pen, font, place, str(confusion[row, column]), color)
    pen.rectangle((left - 1, top - 1, left + side, top + side), outline=_LINE)
    return image


def _shares(confusion: np.ndarray) -> np.ndarray:
    return confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)


def _cells(confusion: np.ndarray, cell: int) -> Image.Image:
    # The square root shows rare confusions too.
    strength = np.sqrt(_shares(confusion))[..., None]
    colors = np.uint8(np.round(255 + strength * (_DARK - 255.0)))
    return Image.fromarray(colors.repeat(cell, axis=0).repeat(cell, axis=1))


def _shortened(name: str, length: int = 24) -> str:
    return name if len(name) <= length else name[: length - 1] + "."


def _width(font, text: str) -> int:
    return int(font.getbbox(text)[2]) + 1


def _height(font) -> int:
    return int(font.getbbox("Ag")[3]) + 1


def _centered(pen, font, place, text: str, color=_BLACK) -> None:
    x, y = place
    pen.text((x - _width(font, text) / 2, y - _height(font) / 2), text, fill=color, font=font)


def _rotated(image: Image.Image, font, place, text: str) -> None:
    x, y = place
    label = Image.new("RGB", (_width(font, text), _height(font)), _WHITE)
    ImageDraw.Draw(label).text((0, 0), text, fill=_BLACK, font=font)
    label = label.transpose(Image.Transpose.ROTATE_90)
    image.paste(label, (int(x - label.width / 2), int(y - label.height / 2)))
