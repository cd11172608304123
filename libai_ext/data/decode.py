"""From the bytes of an image file to a Pillow image: one rule for each kind of odd file.

| file | rule |
|---|---|
| empty, truncated, corrupt, of no known format | :class:`BadImage` |
| more than ``max_pixels`` pixels (decompression bomb) | :class:`BadImage`, nothing is decoded |
| floating-point pixels (their range is anybody's guess) | :class:`BadImage` |
| 16-bit grey | the high byte; Pillow alone would clip at 255 |
| palette, CMYK, bilevel, alpha | converted by Pillow; alpha is dropped, as in torchvision |
| animated, several pages | the first frame |
| rotated or mirrored by an EXIF tag | transposed upright; an unreadable tag counts as none |
| 1 x 1 | as it is; the transform scales it up |

Who gets a :class:`BadImage` may skip it (:mod:`libai_ext.data.tolerant`). A file that cannot be
*read* (missing, no permission, a failing disk) is no bad image: skipping it would make the samples
depend on the machine.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import Iterator, Sequence

import numpy as np
from PIL import Image

from libai_ext.errors import DataError

MODES = ("RGB", "L")

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(DataError):
    """A sample's bytes are no image that can be used; the same on every machine."""

    def __init__(self, name: str, why: str):
        super().__init__(f"cannot read image {name}: {why}")


@dataclass(frozen=True)
class Decoder:
    """Applies the rules of this module.

    Args:
        mode: Pillow mode of the result, ``"RGB"`` or ``"L"``.
        max_pixels: larger images are bad ones; None: Pillow's own limit, 179 million.
        draft_size: (height, width) below which the consumer does not need an image. JPEG files of
            at least twice that are decoded at 1/2, 1/4 or 1/8, never below it: faster, and
            slightly other pixels.
    """

    mode: str = "RGB"
    max_pixels: int | None = None
    draft_size: Sequence[int] | None = None

    def __post_init__(self):
        if self.mode not in MODES:
            raise DataError(f"data.mode must be one of {MODES}, not {self.mode!r}")

    def __call__(self, data: bytes, name: str) -> Image.Image:
        """The image in ``data``; ``name`` is for the message.

        Raises:
            BadImage: see the table.
        """
        if not data:
            raise BadImage(name, "the file is empty")
        # Pillow's plug-ins raise whatever a corrupt file leads them to: KeyError, struct.error,
        # zlib.error and more. The bytes are in memory, so nothing here is the machine's fault but
        # MemoryError.
        try:
            with _pixel_limit(self.max_pixels), Image.open(io.BytesIO(data)) as image:
                return self._convert(self._load(image))
        except MemoryError:
            raise
        except Exception as error:
            raise BadImage(name, str(error) or type(error).__name__) from error

    def _load(self, image: Image.Image) -> Image.Image:
        """The first frame, decoded and upright."""
        if self.draft_size is not None:
            height, width = self.draft_size
            if _orientation(image) >= 5:
                height, width = width, height
            image.draft(self.mode, (width, height))
        image.load()
        # After load: some plug-ins (TIFF) turn the image themselves, and drop the tag.
        turn = _UPRIGHT.get(_orientation(image))
        return image if turn is None else image.transpose(turn)

    def _convert(self, image: Image.Image) -> Image.Image:
        if image.mode == "F":
            raise ValueError("floating-point pixels have no defined range")
        if image.mode.startswith("I"):
            high = np.asarray(image).astype(np.int64) >> 8
            image = Image.fromarray(np.uint8(high.clip(0, 255)))
        # Pillow warns of palettes with transparency, which conversion drops.
        image.info.pop("transparency", None)
        return image if image.mode == self.mode else image.convert(self.mode)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # a broken tag is no reason to lose good pixels
        return 1


@contextlib.contextmanager
def _pixel_limit(pixels: int | None) -> Iterator[None]:
    """Pillow refuses, in every plug-in, what is more than twice its global limit."""
    if pixels is None:
        yield
        return
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max(1, pixels // 2)
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before
