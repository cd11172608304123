"""Images of any number of channels, with the values that their files hold.

``data.mode`` is their number of channels. Values of a file, and what ``ToArray`` divides them by
before it subtracts ``data.mean``:

| type | divided by |
|---|---|
| uint8 | 255 |
| uint16 | 65,535, whichever of its values the images use |
| float32 | 1 |
| others | error: they have no known range |

H x W pixels, C channels.
"""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
from PIL import Image

DIVISORS = {"uint8": 255, "uint16": 65535, "float32": 1}
NPY = b"\x93NUMPY"

MAX_SIDE = 65_535  # Pillow may fail on more on some machines
_MAX_HEADER = 10_000  # bytes of a .npy; NumPy writes 118
# Modes of Pillow that hold what the file holds. Others were converted, or have a palette.
_PILLOW = ("L", "LA", "RGB", "RGBA", "I;16", "I;16L", "I;16B")
_Method = Image.Transpose
_TRANSPOSE = {
    _Method.FLIP_LEFT_RIGHT: lambda a: a[:, ::-1],
    _Method.FLIP_TOP_BOTTOM: lambda a: a[::-1],
    _Method.ROTATE_90: lambda a: np.rot90(a, 1),
    _Method.ROTATE_180: lambda a: np.rot90(a, 2),
    _Method.ROTATE_270: lambda a: np.rot90(a, 3),
    _Method.TRANSPOSE: lambda a: a.swapaxes(0, 1),
    _Method.TRANSVERSE: lambda a: np.rot90(a, 2).swapaxes(0, 1),
}


class ChannelImage:
    """An array with those methods of a Pillow image that the transforms use.

    Args:
        array: [H, W] or [H, W, C], uint8, uint16 or float32.
        channels: what C must be.

    Attributes:
        divisor: of the values, see the head of this module.

    Raises:
        ValueError: another type or number of channels, no pixels, or a value that is not finite.
    """

    def __init__(self, array: np.ndarray, channels: int):
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        if str(array.dtype) not in DIVISORS:
            raise ValueError(
                f"its values are {array.dtype}, which has no defined range: save them as "
                f"{', '.join(DIVISORS)}"
            )
        found = array.shape
        array = array[..., None] if array.ndim == 2 else array
        if array.ndim != 3 or array.shape[2] != channels:
            turned = array.ndim == 3 and array.shape[0] == channels
            raise ValueError(
                f"an array of {list(found)}; data.mode expects [height, width, {channels}]"
                + (": move its first axis to the end" if turned else "")
            )
        if not array.size or max(found[:2]) > MAX_SIDE:
            raise ValueError(f"{found[1]} x {found[0]} pixels")
        if array.dtype == np.float32 and not np.isfinite(array).all():
            raise ValueError("it holds values that are not finite: replace them, as by 0")
        self._set(array, DIVISORS[str(array.dtype)])

    def _set(self, array: np.ndarray, divisor: int) -> ChannelImage:
        self._array, self.divisor = array, divisor
        self.height, self.width, self.mode = array.shape
        self.size = (self.width, self.height)
        return self

    def _like(self, array: np.ndarray) -> ChannelImage:
        return ChannelImage.__new__(ChannelImage)._set(array, self.divisor)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self._array if dtype is None else self._array.astype(dtype)

    def getbands(self) -> tuple[str, ...]:
        """A name for each channel."""
        return tuple(map(str, range(self.mode)))

    def load(self) -> None:
        """Nothing: the values are there."""

    def crop(self, box: tuple[int, int, int, int]) -> ChannelImage:
        """(left, top, right, bottom); what is outside of the image is 0."""
        left, top, right, bottom = box
        inside = self._array[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
        before = [min(max(-side, 0), end - side) for side, end in ((top, bottom), (left, right))]
        height, width = bottom - top, right - left
        if inside.shape[:2] == (height, width):
            return self._like(inside)
        out = np.zeros((height, width, self.mode), self._array.dtype)
        rows, columns = inside.shape[:2]
        out[before[0] : before[0] + rows, before[1] : before[1] + columns] = inside
        return self._like(out)

    def resize(self, size: tuple[int, int], resample: Any) -> ChannelImage:
        """To (width, height), as float32. Integers keep their range, as in Pillow: it clips 8-bit
        values after each of its two passes, and rounds them, which this does not."""
        planes = []
        for channel in range(self.mode):
            values = np.ascontiguousarray(self._array[..., channel], np.float32)
            for part in ((size[0], self.height), size):
                values = np.asarray(Image.fromarray(values).resize(part, resample))
                if self.divisor != 1:
                    values = np.clip(values, 0, self.divisor)
            planes.append(values)
        return self._like(np.stack(planes, axis=-1))

    def transpose(self, method: Any) -> ChannelImage:
        """Mirrored or turned, see ``PIL.Image.Transpose``."""
        return self._like(_TRANSPOSE[method](self._array))


def read_npy(data: bytes, most: int) -> np.ndarray:
    """The array in a ``.npy`` file, without a copy.

    Args:
        most: values that it may have.

    Raises:
        ValueError: it is none that NumPy writes for numbers, is cut short or has more values.
    """
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    (length,) = struct.unpack_from("<H", data, 8)
    if version != (1, 0) or length > _MAX_HEADER:
        raise ValueError(f"a .npy header of version {version} and {length:,} bytes")
    try:
        shape, in_columns, dtype = np.lib.format.read_array_header_1_0(file)
    except (MemoryError, RecursionError) as error:  # brackets in brackets
        raise ValueError("the header of the .npy is damaged") from error
    if dtype.hasobject or dtype.itemsize == 0 or any(side < 0 for side in shape):
        raise ValueError(f"an array of {dtype} {list(shape)}")
    count = 1
    for side in shape:
        count *= side
    check_size(count, most)
    start = file.tell()
    if len(data) - start < count * dtype.itemsize:
        raise ValueError(f"the file ends after {len(data) - start:,} bytes of its values, which "
                         f"are {count * dtype.itemsize:,}")  # fmt: skip
    flat = np.frombuffer(data, dtype, count, start)
    return flat.reshape(shape[::-1]).T if in_columns else flat.reshape(shape)


def check_size(values: int, most: int) -> None:
    """
    Raises:
        ValueError: an image has too many values.
    """
    if values > most:
        raise ValueError(f"{values:,} values, more than the {most:,} allowed")


def of_pillow(image: Image.Image) -> np.ndarray:
    """The values of a decoded Pillow image.

    Raises:
        ValueError: Pillow does not hold what the file holds.
    """
    if image.mode not in _PILLOW:
        raise ValueError(f"pixels of mode {image.mode}: save them as a TIFF or .npy")
    return np.asarray(image)
