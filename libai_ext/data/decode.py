"""Decode image files with Pillow: one rule for each kind of odd file.

| file | rule |
|---|---|
| empty, truncated, corrupt, not of :data:`FORMATS` | :class:`BadImage` |
| more than ``max_pixels`` pixels (decompression bomb) | :class:`BadImage`, nothing is decoded |
| a side of more than 65,535 pixels | the same: Pillow may fail on it on some machines |
| a JPEG with more scans or more work than programs write | the same |
| pixels of 32 bits, signed or floating-point (of unknown range) | :class:`BadImage` |
| grey of 9 to 16 bits | its highest 8 bits; Pillow alone would clip at 255 |
| colours of 16 bits | their highest 8 bits, by Pillow |
| either, if at most 16 levels remain (12 bits in a file of 16) | :class:`BadImage` |
| palette, CMYK, bilevel, alpha | converted by Pillow; alpha is dropped, as in torchvision |
| animated, several pages | the first frame |
| rotated or mirrored by an EXIF tag | transposed upright; an unreadable tag counts as none |
| 1 x 1 | as it is; the transform scales it up |

With a number of channels as mode, values are kept as they are stored
(:mod:`libai_ext.data.channels`):

| file | rule |
|---|---|
| TIFF | :mod:`libai_ext.data.tiff` |
| ``.npy`` of [H, W] or [H, W, C], no Python objects | read |
| others | 8-bit grey and RGB, with or without alpha, and 16-bit grey are read |
| another number of channels or type, values that are not finite | :class:`BadImage` |
| more than ``max_pixels`` values, those of all channels together | :class:`BadImage` |

:mod:`libai_ext.data.skip_unreadable` replaces bad images. A file that cannot be *opened* (missing,
no permission, a failing disk) is not a bad image: skipping it would make the samples depend on the
machine.

``as_torchvision`` gives the pixels of torchvision's loader and the official code: the image is not
rotated, and values of more than 8 bits are clipped at 255.
"""

from __future__ import annotations

import contextlib
import io
import re
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Callable, Iterator, Sequence

import numpy as np
from PIL import Image, UnidentifiedImageError

from libai_ext.data import tiff
from libai_ext.data.channels import MAX_SIDE, NPY, ChannelImage, of_pillow, read_npy
from libai_ext.errors import DataError

MODES = ("RGB", "L")
# Recognised by content, not by name. Pillow knows more formats; for EPS it starts Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "PPM", "TIFF", "JPEG2000", "TGA", "PSD")

# Of a file. The largest allowed image takes less, even uncompressed.
MAX_BYTES = 1 << 30
# Of a JPEG: each scan processes all pixels. Programs write 10 or 20.
MAX_SCANS = 100
# Scans x pixels: the largest image in 10 scans.
MAX_SCANNED = 1_800_000_000
_BLOCK = 1 << 16  # bytes, which stay in the cache

_JPEGS = ("JPEG", "MPO")
_EXIF_ORIENTATION = 0x0112
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _UNSIGNED = 0, 1
# Of 256 levels. Darker images hold values of fewer bits than their file says.
_BRIGHTEST_AT_LEAST = 16
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# (width, height) of an upright JPEG -> the divisor of its sides: 1, 2, 4 or 8.
Reduction = Callable[[int, int], int]
_reduction: ContextVar[Reduction | None] = ContextVar("reduction", default=None)


@contextlib.contextmanager
def reduced(by: Reduction) -> Iterator[None]:
    """Within this block, JPEGs are decoded at 1/2, 1/4 or 1/8 of their size, rounded up, if ``by``
    says so. libjpeg does it by a smaller inverse transform of each block. ``draft_size`` goes
    first."""
    token = _reduction.set(by)
    try:
        yield
    finally:
        _reduction.reset(token)


class BadImage(DataError):
    """A sample's bytes are not a usable image, on any machine."""

    def __init__(self, name: str, why: str):
        super().__init__(f"cannot read image {name}: {why}")


@dataclass(frozen=True)
class Decoder:
    """Applies the rules of this module.

    Args:
        mode: Pillow mode of the result, ``"RGB"`` or ``"L"``; or the number of channels of a
            :class:`ChannelImage`.
        max_pixels: larger images are bad; None: Pillow's limit, 179 million.
        draft_size: smallest (height, width) that is needed. Larger JPEG files are decoded at 1/2,
            1/4 or 1/8 of their size, not below this one: faster, with slightly different pixels.
        as_torchvision: see the head of this module.
    """

    mode: str | int = "RGB"
    max_pixels: int | None = None
    draft_size: Sequence[int] | None = None
    as_torchvision: bool = False

    def __post_init__(self):
        if not (self.mode in MODES or self.is_stored and int(self.mode) > 0):
            raise DataError(f"data.mode must be one of {MODES} or a number, not {self.mode!r}")
        if self.is_stored and self.as_torchvision:
            raise DataError(f"data.as_torchvision goes with data.mode RGB or L, not {self.mode}")

    @property
    def is_stored(self) -> bool:
        """Whether the result is a :class:`ChannelImage`."""
        return type(self.mode) is int

    def __call__(self, data: bytes, name: str) -> Any:
        """The image in ``data``; ``name`` is for the message.

        Raises:
            BadImage: see the table.
        """
        if not data:
            raise BadImage(name, "the file is empty")
        with _bad_image_for_errors(name), _pixel_limit(self.max_pixels):
            if self.is_stored and data.startswith((NPY, *tiff.MAGIC)):
                return self._stored(data)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_cost(image, data)
                return self._convert(self._load(image))

    def convert(self, image: Any, name: str = "that was given") -> Any:
        """The same for an image that Pillow has opened or made, or, with a number of channels as
        mode, for an array [H, W] or [H, W, C]; it is not changed.

        Raises:
            BadImage: see the table.
        """
        with _bad_image_for_errors(name):
            if isinstance(image, np.ndarray):
                return ChannelImage(image, int(self.mode))
            return self._convert(self._load(image))

    def _stored(self, data: bytes) -> ChannelImage:
        """The image in a TIFF or ``.npy``."""
        channels = int(self.mode)
        most = self.max_pixels or 2 * (Image.MAX_IMAGE_PIXELS or MAX_BYTES)
        if data.startswith(NPY):
            return ChannelImage(read_npy(data, most), channels)
        array, orientation = tiff.read(data, channels, most)
        turn, image = _UPRIGHT.get(orientation), ChannelImage(array, channels)
        return image if turn is None else image.transpose(turn)

    def _load(self, image: Image.Image) -> Image.Image:
        """The first frame, decoded and upright."""
        self._draft(image)
        # An image made in memory has no tile.
        deep_colours = ";16" in str(getattr(image, "tile", "")) and not image.mode.startswith("I")
        image.load()
        if self.as_torchvision:
            return image
        if deep_colours and self.is_stored:
            raise ValueError("Pillow reads only 8 of its 16 bits: save it as a TIFF or .npy")
        if deep_colours:
            _check_brightness(np.asarray(image.convert("RGB")).max())
        # After load: some plug-ins (TIFF) turn the image themselves and drop the tag.
        turn = _UPRIGHT.get(_orientation(image))
        if image.mode.startswith("I") and not self.is_stored:
            image = _eight_bits(image)
        return image if turn is None else image.transpose(turn)

    def _draft(self, image: Image.Image) -> None:
        """Choose the size that a JPEG is decoded at."""
        reduction = _reduction.get()
        if image.format not in _JPEGS:
            return
        # A draft to grey takes it from the file, not from the colours.
        mode = None if self.is_stored else str(self.mode)
        turned = not self.as_torchvision and _orientation(image) >= 5
        if self.draft_size is not None:
            height, width = self.draft_size
            image.draft(mode, (height, width) if turned else (width, height))
        elif reduction is not None:
            by = reduction(*(reversed(image.size) if turned else image.size))
            if by > 1:
                image.draft(mode, (image.width // by, image.height // by))

    def _convert(self, image: Image.Image) -> Any:
        if self.is_stored:
            return ChannelImage(of_pillow(image), int(self.mode))
        if image.mode == "F" and not self.as_torchvision:
            raise ValueError("floating-point pixels have no defined range")
        if "transparency" in image.info:  # Pillow warns of palettes with it: conversion drops it
            image = image.copy()
            del image.info["transparency"]
        return image if image.mode == self.mode else image.convert(str(self.mode))


def _check_cost(image: Image.Image, data: bytes) -> None:
    """
    Raises:
        ValueError: decoding takes too much memory or time.
    """
    if max(image.size) > MAX_SIDE:
        raise ValueError(f"{image.width} x {image.height} pixels: a side of more than {MAX_SIDE}")
    if image.format in _JPEGS:
        scans = _scans(data)
        if scans > MAX_SCANS or scans * image.width * image.height > MAX_SCANNED:
            raise ValueError(f"{scans} scans of {image.width} x {image.height} pixels")


def _scans(data: bytes) -> int:
    """How often a JPEG file has the marker ff da: in coded pixels, a zero follows each ff.
    Three times as fast as ``bytes.count``."""
    codes = np.frombuffer(data, np.uint8)
    blocks = (codes[at : at + _BLOCK + 1] for at in range(0, len(codes), _BLOCK))
    return sum(np.count_nonzero((b[:-1] == 0xFF) & (b[1:] == 0xDA)) for b in blocks)


def _eight_bits(image: Image.Image) -> Image.Image:
    """The highest 8 bits of a grey image that has more.

    Raises:
        ValueError: the image would be black, or the range of its values is unknown.
    """
    tags = getattr(image, "tag_v2", {})
    (bits,), (kind,) = tags.get(_TIFF_BITS, (16,)), tags.get(_TIFF_SAMPLE_FORMAT, (_UNSIGNED,))
    values = np.asarray(image).astype(np.int64)
    if bits > 16 or kind != _UNSIGNED or not 0 <= values.min() <= values.max() < 1 << bits:
        raise ValueError("grey of 32 or of signed bits has no defined range: convert it to 8 bits")
    if values.any():
        _check_brightness(values.max() >> (bits - 8))
    if tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = (1 << bits) - 1 - values
    return Image.fromarray(np.uint8(values >> (bits - 8)))


def _check_brightness(brightest: int) -> None:
    """Of 255, in the highest 8 bits."""
    if brightest < _BRIGHTEST_AT_LEAST:
        raise ValueError(
            f"its values of more than 8 bits reach {brightest} of 255 as 8 bits, which is black: "
            "convert it by the range that it really has"
        )


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # with a broken tag, the pixels may still be good
        return 1


@contextlib.contextmanager
def _bad_image_for_errors(name: str) -> Iterator[None]:
    """For corrupt files, Pillow's plug-ins raise KeyError, struct.error, zlib.error and more.
    The bytes are in memory, so only a MemoryError can be the machine's fault."""
    try:
        yield
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise BadImage(name, "unknown image format") from error
    except Exception as error:
        # Pillow's messages contain addresses of objects.
        why = re.sub(r"<[^<>]* at 0x[0-9a-f]+>", "it", str(error))
        raise BadImage(name, why or type(error).__name__) from error


@contextlib.contextmanager
def _pixel_limit(pixels: int | None) -> Iterator[None]:
    """Set Pillow's global limit: Pillow refuses images with more than twice as many pixels."""
    if pixels is None:
        yield
        return
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max(1, pixels // 2)
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before
