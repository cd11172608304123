"""TIFF files of any number of channels, as arrays of what they hold.

Pillow reads at most four channels, of 8 bits.

| TIFF, BigTIFF | rule |
|---|---|
| one page with C values a pixel, side by side or plane by plane | C channels |
| C pages of one size, each with one value a pixel | C channels |
| further pages, as the overviews of a cloud-optimised GeoTIFF | skipped |
| 8 or 16 bits without sign, float32 | read as they are |
| strips or tiles; none, LZW, Deflate or PackBits compression; predictors 2 and 3 | read |
| an orientation | turned upright |
| palettes, YCbCr, white as zero, other types and compressions | error |

Sizes are checked before memory is taken for them. A compressed part is unpacked into as many bytes
as it has in the image, Deflate by zlib, others by Pillow's libtiff.
"""

from __future__ import annotations

import io
import struct
import zlib
from itertools import islice
from typing import Iterator, Mapping, NamedTuple

import numpy as np
from PIL import TiffImagePlugin

from libai_ext.data.channels import check_size

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_FILL_ORDER, _STRIPS, _ORIENTATION, _SAMPLES, _ROWS, _STRIP_BYTES = 266, 273, 274, 277, 278, 279
_PLANAR, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES = 284, 317, 322, 323, 324, 325
_FORMAT = 339
_MAX_TAGS = 1000  # of a page; GDAL writes 20
_KINDS = {1: "u1", 3: "u2", 4: "u4", 16: "u8"}
_TYPES = {(8, 1): "u1", (16, 1): "u2", (32, 3): "f4"}  # by bits and sample format
_BLACK_IS_ZERO, _RGB, _SEPARATED = 1, 2, 5
_NONE, _LZW, _DEFLATE, _OLD_DEFLATE, _PACKBITS = 1, 5, 8, 32946, 32773
_PREDICTED = (_LZW, _DEFLATE, _OLD_DEFLATE)

Tags = Mapping[int, np.ndarray]


class Layout(NamedTuple):
    """How a page holds its values.

    Attributes:
        size: (height, width, values a pixel).
        dtype: with the file's byte order.
        block: (height, width) of a strip or tile; the last strip may be lower.
        planes: how many arrays follow each other: 1, or one for each value of a pixel.
    """

    size: tuple[int, int, int]
    dtype: np.dtype
    block: tuple[int, int]
    planes: int
    compression: int
    predictor: int


def read(data: bytes, channels: int, most: int) -> tuple[np.ndarray, int]:
    """The array [H, W, C] in a file, and its orientation as in EXIF.

    Args:
        channels: C. A file with another number gives the array of its first page.
        most: values that it may have.

    Raises:
        ValueError, struct.error, zlib.error, OSError: it breaks a rule of the table, is damaged or
            cut short.
    """
    pages = list(islice(_pages(data), channels + 1))
    if not pages:
        raise ValueError("a TIFF without a page")
    orientation = _one(pages[0], _ORIENTATION, 1)
    first = _layout(pages[0], _order(data), most)
    if first.size[2] > 1 or len(pages) != channels:
        return _values(data, pages[0], first), orientation
    layouts = [_layout(page, _order(data), most // channels) for page in pages]
    if any(layout.size != first.size or layout.dtype != first.dtype for layout in layouts):
        raise ValueError(f"its {channels} pages differ in size or type")
    parts = [_values(data, page, layout) for page, layout in zip(pages, layouts)]
    return np.concatenate(parts, axis=2), orientation


def _order(data: bytes) -> str:
    return "<" if data[:2] == b"II" else ">"


def _pages(data: bytes) -> Iterator[Tags]:
    """The tags of each page, in a circle if the file links them so."""
    order, is_big = _order(data), data[2:4] in (b"+\0", b"\0+")
    word, count_of, step = ("Q", "Q", 20) if is_big else ("I", "H", 12)
    (offset,) = struct.unpack_from(order + word, data, 8 if is_big else 4)
    while offset:
        (count,) = struct.unpack_from(order + count_of, data, offset)
        if count > _MAX_TAGS:
            raise ValueError(f"a TIFF page with {count:,} tags")
        start = offset + struct.calcsize(count_of)
        yield dict(_tag(data, start + i * step, order, word) for i in range(count))
        (offset,) = struct.unpack_from(order + word, data, start + count * step)


def _tag(data: bytes, place: int, order: str, word: str) -> tuple[int, np.ndarray]:
    """A tag's number and values; none for those of another type than whole numbers."""
    tag, kind, count = struct.unpack_from(f"{order}HH{word}", data, place)
    if kind not in _KINDS:
        return tag, np.empty(0, np.int64)
    dtype, inside = np.dtype(order + _KINDS[kind]), struct.calcsize(word)
    at = place + 4 + inside
    if count * dtype.itemsize > inside:
        (at,) = struct.unpack_from(order + word, data, at)
    if at + count * dtype.itemsize > len(data):
        raise ValueError(f"the file ends before the values of TIFF tag {tag}")
    return tag, np.frombuffer(data, dtype, count, at)


def _one(tags: Tags, tag: int, default: int | None = None) -> int:
    """The value of a tag; if it has several, they must be the same."""
    values = set(tags[tag].tolist()) if tag in tags else {default}
    if len(values) != 1 or None in values:
        raise ValueError(f"TIFF tag {tag} is {sorted(filter(None, values)) or 'missing'}")
    return int(values.pop() or 0)


def _layout(tags: Tags, order: str, most: int) -> Layout:
    size = (_one(tags, _HEIGHT), _one(tags, _WIDTH), _one(tags, _SAMPLES, 1))
    if min(size) < 1:
        raise ValueError(f"a TIFF of {list(size)}")
    check_size(size[0] * size[1] * size[2], most)
    kind = _one(tags, _BITS, 1), _one(tags, _FORMAT, 1)
    if kind not in _TYPES:
        raise ValueError(
            f"TIFF values of {kind[0]} bits, sample format {kind[1]}: save them as uint8, uint16 "
            "or float32"
        )
    photometric = _one(tags, _PHOTOMETRIC, _BLACK_IS_ZERO)
    if photometric not in (_BLACK_IS_ZERO, _RGB, _SEPARATED):
        raise ValueError(f"a TIFF of photometric {photometric}: save plain values (1)")
    if _TILES in tags:
        block = (_one(tags, _TILE_HEIGHT), _one(tags, _TILE_WIDTH))
    else:
        block = (min(_one(tags, _ROWS, size[0]), size[0]), size[1])
    if min(block) < 1:
        raise ValueError(f"TIFF strips or tiles of {list(block)}")
    check_size(block[0] * block[1] * size[2], most)
    compression, predictor = _one(tags, _COMPRESSION, _NONE), _one(tags, _PREDICTOR, 1)
    if compression not in (*_PREDICTED, _NONE, _PACKBITS) or _one(tags, _FILL_ORDER, 1) != 1:
        raise ValueError(f"TIFF compression {compression}: use none, LZW, Deflate or PackBits")
    is_float = kind == (32, 3)
    if predictor != 1 and compression not in _PREDICTED or predictor > 2 + is_float:
        raise ValueError(f"TIFF predictor {predictor} with compression {compression}")
    planes = size[2] if _one(tags, _PLANAR, 1) == 2 else 1
    return Layout(size, np.dtype(order + _TYPES[kind]), block, planes, compression, predictor)


def _values(data: bytes, tags: Tags, layout: Layout) -> np.ndarray:
    (height, width, samples), (tall, wide) = layout.size, layout.block
    rows, columns = -(-height // tall), -(-width // wide)
    offsets, lengths = (
        tags.get(tag, np.empty(0))
        for tag in ((_TILES, _TILE_BYTES) if _TILES in tags else (_STRIPS, _STRIP_BYTES))
    )
    count = layout.planes * rows * columns
    if not len(offsets) == len(lengths) == count:
        raise ValueError(f"{len(offsets)} TIFF strips or tiles, not {count}")
    out = np.empty(layout.size, layout.dtype.newbyteorder("="))
    each = samples // layout.planes
    for number, (offset, length) in enumerate(zip(offsets.tolist(), lengths.tolist())):
        plane, place = divmod(number, rows * columns)
        top, left = place // columns * tall, place % columns * wide
        part = out[top : top + tall, left : left + wide, plane * each : (plane + 1) * each]
        lines = tall if _TILES in tags else len(part)
        block = _block(data[offset : offset + length], (lines, wide, each), layout)
        part[:] = block[: part.shape[0], : part.shape[1]]
    return out


def _block(packed: bytes, shape: tuple[int, int, int], layout: Layout) -> np.ndarray:
    """The values of a strip or tile."""
    dtype = layout.dtype
    size = shape[0] * shape[1] * shape[2] * dtype.itemsize
    raw = packed if layout.compression == _NONE else _unpacked(packed, layout.compression, size)
    if len(raw) < size:
        raise ValueError(f"a TIFF strip or tile of {len(raw):,} bytes, not {size:,}")
    if layout.predictor == 3:  # of each value the highest bytes first, then the next, as sums
        sums = np.frombuffer(raw, np.uint8, size).reshape(shape[0], -1, shape[2])
        planes = np.cumsum(sums, axis=1, dtype=np.uint8).reshape(shape[0], 4, -1)
        return np.ascontiguousarray(planes.swapaxes(1, 2)).view(">f4").reshape(shape)
    block = np.frombuffer(raw, dtype, size // dtype.itemsize).reshape(shape)
    if layout.predictor == 2:  # differences of neighbours, of floats as well as whole numbers
        whole = np.dtype(f"u{dtype.itemsize}")
        differences = block.view(dtype.str.replace("f", "u"))
        return np.cumsum(differences, axis=1, dtype=whole).view(dtype.newbyteorder("="))
    return block


def _unpacked(packed: bytes, compression: int, size: int) -> bytes:
    """``size`` bytes, fewer if there are no more."""
    if compression != _LZW and compression != _PACKBITS:
        return zlib.decompressobj().decompress(packed, size)
    # As the grey pixels of a TIFF with a single strip.
    tags = {
        _WIDTH: size, _HEIGHT: 1, _BITS: 8, _COMPRESSION: compression,
        _PHOTOMETRIC: _BLACK_IS_ZERO, _STRIPS: 8 + 2 + 9 * 12 + 4, _SAMPLES: 1, _ROWS: 1,
        _STRIP_BYTES: len(packed),
    }  # fmt: skip
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    head += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    with TiffImagePlugin.TiffImageFile(io.BytesIO(head + bytes(4) + packed)) as image:
        return image.tobytes()
