"""Labelled image grids: a column for each kind of picture, a row for each sample."""

from __future__ import annotations

from typing import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from libai_ext.text import printable

_WHITE, _GREY, _BLACK = (255, 255, 255), (90, 90, 90), (0, 0, 0)


def magnification(height: int, width: int, wanted: int) -> int:
    """The whole factor that makes the longer side closest to ``wanted`` pixels."""
    return max(1, round(wanted / max(height, width)))


def image_grid(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    scale: int,
    names: Sequence[str] = (),
) -> Image.Image:
    """Pictures in a grid under the titles of its columns.

    Args:
        rows: pictures [H, W, C] in [0, 1], C = 1 or 3, all of one size.
        titles: one for each column, wrapped if the column is narrow.
        scale: each pixel becomes scale x scale pixels, so that patches keep sharp edges.
        names: one for each row, written above it; if it is too long, only its end.
    """
    height, width = (side * scale for side in rows[0][0].shape[:2])
    gap = max(4, min(height, width) // 24)
    font = ImageFont.load_default(max(11, min(28, width // 11)))
    labels = [_wrapped(title, width, font) for title in titles]
    line = int(font.getbbox("Ag")[3]) + 2
    head = gap + line * max(label.count("\n") + 1 for label in labels)
    above = gap // 2 + line if names else gap // 2
    step = above + height + gap - gap // 2
    whole = len(titles) * (width + gap) + gap
    canvas = Image.new("RGB", (whole, head + len(rows) * step + gap // 2), _WHITE)
    draw = ImageDraw.Draw(canvas)
    for column, label in enumerate(labels):
        middle = gap + column * (width + gap) + width // 2
        draw.multiline_text(
            (middle, head), label, fill=_BLACK, font=font, anchor="md", align="center"
        )
    for number, row in enumerate(rows):
        top = head + number * step + above
        if names:
            text = _end_of(printable(names[number]), whole - 2 * gap, font)
            draw.text((gap, top - 2), text, fill=_GREY, font=font, anchor="ld")
        for column, picture in enumerate(row):
            canvas.paste(_image(picture, scale), (gap + column * (width + gap), top))
    return canvas


def _image(picture: np.ndarray, scale: int) -> Image.Image:
    pixels = np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    pixels = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    return Image.fromarray(pixels.repeat(scale, axis=0).repeat(scale, axis=1))


def _wrapped(title: str, width: int, font) -> str:
    lines = [""]
    for word in title.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def _end_of(text: str, width: int, font) -> str:
    """The text, or as much of its end as fits into ``width``."""
    start = 0
    while start < len(text) and font.getlength("..." * bool(start) + text[start:]) > width:
        start += 1
    return "..." * bool(start) + text[start:]
