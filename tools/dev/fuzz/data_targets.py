"""Data sets: tar shards and their index caches, LMDBs, CIFAR, images."""

from __future__ import annotations

import contextlib
import io
import logging
import pickle
import struct
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any, Iterator
from unittest import mock

import lmdb
import numpy as np
import tifffile
from guard import Target, expect
from PIL import Image

from libai_ext.data import cifar, tar_shards
from libai_ext.data.decode import FORMATS, BadImage, Decoder
from libai_ext.data.lmdb_file import LmdbError
from libai_ext.data.lmdb_source import LmdbImages
from libai_ext.data.tar_scan import ShardIndex, scan
from libai_ext.errors import DataError

MAX_PIXELS = 1 << 16  # of one image; users set this limit
FIRST = 3  # number of samples to read

# Without the readers' warnings, which every input would repeat.
logging.getLogger("libai_ext").setLevel(logging.ERROR)
warnings.simplefilter("ignore")


def _image(kind: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    out = io.BytesIO()
    pixels = np.arange(7 * 5 * 3, dtype=np.uint8).reshape(7, 5, 3)
    Image.fromarray(pixels).convert(mode).save(out, kind, **options)
    return out.getvalue()


# Tar shards


def _shards(folder: Path) -> Iterator[bytes]:
    members = [
        ("a/0.png", _image()), ("a/0.cls", b"3"), ("a/0.json", b"{}"), ("b.jpg", b""),
        ("b.cls", b"12\n"),
        (f"{'long/' * 30}c.png", b"x" * 600), (f"{'long/' * 30}c.cls", b"0"),
    ]  # fmt: skip
    for layout in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=layout) as tar:
            for name, data in members:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                if layout == tarfile.PAX_FORMAT and name == "b.jpg":
                    member.pax_headers = {"mtime": "1.5", "comment": "\u00e9"}
                tar.addfile(member, io.BytesIO(data))
        # Mutations of tar's padding to 10,240 bytes would be useless.
        yield out.getvalue().rstrip(b"\0") + bytes(1536)


def _with_checksums(path: Path, data: bytes) -> None:
    """Correct the checksums of all blocks that look like headers: mutations make them wrong."""
    blocks = bytearray(data)
    for start in range(0, len(blocks) - 511, 512):
        block = blocks[start : start + 512]
        if block[257:262] == b"ustar":
            total = 256 + sum(block[:148]) + sum(block[156:])
            blocks[start + 148 : start + 156] = b"%06o\0 " % total
    path.write_bytes(blocks)


def _compare_shard(path: Path, index: ShardIndex) -> None:
    """Compare places and names with tarfile's own list of members."""
    with tarfile.open(path, "r:") as tar:
        members = {(member.offset_data, member.size): member.name for member in tar}
    for offset, size, name in zip(index.offset, index.size, index.name):
        theirs = members.get((int(offset), int(size)), "").encode("utf-8", "surrogateescape")
        expect(theirs.rstrip(b"\0") == bytes(name), f"tarfile finds {theirs!r} there, not {name!r}")


TAR = Target(
    name="tar",
    seeds=_shards,
    read=lambda path: scan(str(path)),
    errors=(DataError,),
    lay=_with_checksums,
    compare=_compare_shard,
    file="shard.tar",
    words=(
        b".png\0", b".cls\0", b".jpg\0", b".input.jpg\0", b"/PaxHeader/", b"././@LongLink\0",
        b"ustar\0" b"00", b"ustar  \0", b"\x80\0\0\0\0\0\0\1", b"\xff" * 8, b"77777777777\0",
        b"00000000000\0", b"20 path=a.png\n", b"12 size=-1\n", b"30 GNU.sparse.map=0,1\n",
        b"22 GNU.sparse.major=1\n", b"22 GNU.sparse.minor=0\n", b"27 GNU.sparse.size=99999999\n",
    ),
)  # fmt: skip


# The index cache of a shard

CUT = b"\0CUT\0"  # between its arrays


def _indices(folder: Path) -> Iterator[bytes]:
    for number, content in enumerate(_shards(folder)):
        shard = folder / f"{number}.tar"
        shard.write_bytes(content)
        out = io.BytesIO()
        np.savez(out, **scan(str(shard))._asdict())
        with zipfile.ZipFile(out) as archive:
            arrays = CUT.join(archive.read(f"{column}.npy") for column in ShardIndex._fields)
        yield arrays
        _lay_index(shard, arrays)
        yield shard.read_bytes()


def _lay_index(path: Path, data: bytes) -> None:
    """Write an archive as it is, or make one from its arrays, with correct checksums."""
    if CUT not in data:
        path.write_bytes(data)
        return
    with zipfile.ZipFile(path, "w") as archive:
        for column, content in zip(ShardIndex._fields, data.split(CUT)):
            archive.writestr(zipfile.ZipInfo(f"{column}.npy"), content)  # without a time


def _read_index(path: Path) -> Any:
    """Read the first samples by the index, with the index file itself as the shard."""
    index = tar_shards.read_index(path)
    if index is None:
        raise DataError(f"{path}: made again")
    with mock.patch.object(tar_shards, "load_index", lambda shard: index):
        source = tar_shards.TarShards(str(path), max_pixels=MAX_PIXELS)
    for number in range(min(FIRST, len(source))):
        with contextlib.suppress(BadImage):
            source[number]


TAR_CACHE = Target(
    name="tar-cache",
    seeds=_indices,
    read=_read_index,
    errors=(DataError,),
    lay=_lay_index,
    file="index.npz",
    words=(
        CUT,
        b"PK\1\2", b"PK\3\4", b"PK\5\6", b"\x93NUMPY\1\0", b"'descr'", b"'<i8'", b"'|S", b"'|O'",
        b"'fortran_order'", b"'shape'", b"(3,)", b"(99999999999,)", b"offset.npy", b"passed.npy",
    ),
    may=("compile",),  # of literals, by NumPy for an array's header
)  # fmt: skip


# LMDBs


def _lmdbs(folder: Path) -> Iterator[bytes]:
    sets = [_image()], [_image(), b"x" * 5000, _image("BMP")], [b"x"] * 200
    for number, images in enumerate(sets):
        root = folder / str(number)
        with lmdb.open(str(root), map_size=1 << 24) as environment:
            with environment.begin(write=True) as transaction:
                for place, image in enumerate(images, 1):
                    transaction.put(b"image-%09d" % place, image)
                transaction.put(b"num-samples", b"%d" % len(images))
        yield (root / "data.mdb").read_bytes()


def _lay_lmdb(path: Path, data: bytes) -> None:
    path.mkdir(exist_ok=True)
    (path / "data.mdb").write_bytes(data)


def _read_lmdb(path: Path) -> dict[int, bytes | None]:
    """Sample number -> its stored bytes; each sample is also decoded."""
    source = LmdbImages(str(path), max_pixels=MAX_PIXELS)
    found = {}
    for number in {*range(min(FIRST, len(source))), len(source) - 1}:
        with contextlib.suppress(BadImage, LmdbError):
            found[number] = source._get(f"image-{number + 1:09d}")
            source[number]
    return found


def _compare_lmdb(path: Path, found: dict[int, bytes | None]) -> None:
    """Check that the file contains every value that was found."""
    content = (path / "data.mdb").read_bytes()
    for number, value in found.items():
        if value is not None:
            there = value in content and b"image-%09d" % (number + 1) in content
            expect(there, f"image {number} is made up")


LMDB = Target(
    name="lmdb",
    seeds=_lmdbs,
    read=_read_lmdb,
    errors=(DataError,),
    lay=_lay_lmdb,
    compare=_compare_lmdb,
    words=(
        b"\xde\xc0\xef\xbe\1\0\0\0", b"num-samples", b"image-000000001", b"\0\x10\0\0",
        struct.pack("<Q", 2**64 - 1), struct.pack("<Q", 2), struct.pack("<HH", 2, 0),
    ),
)  # fmt: skip


# Batches of CIFAR


def _batches(folder: Path) -> Iterator[bytes]:
    pixels = np.zeros((1, 3072), np.uint8)
    for protocol in range(2, 5):
        yield pickle.dumps({"data": pixels, "labels": [3]}, protocol)


CIFAR = Target(
    name="cifar",
    seeds=_batches,
    read=lambda path: cifar._read(path, data=cifar._pixels, labels=cifar._numbers),
    errors=(DataError,),
    words=(b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\n_reconstruct\n", b"K\x03", b"u1", b"tb"),
)


# Images


def _images(folder: Path) -> Iterator[bytes]:
    for kind in FORMATS:
        yield _psd() if kind == "PSD" else _image(kind)
    yield _image("PNG", "P")
    yield _image("GIF", "P")
    yield _image("TIFF", "CMYK")
    yield _image("JPEG", progressive=True, exif=_turned())


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def _psd() -> bytes:
    """A PSD, which Pillow cannot write: header, three empty sections, 3 x 2 raw grey pixels."""
    head = b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 1, 2, 3, 8, 1)
    return head + bytes(12) + bytes(2) + b"abcdef"


def _decode(path: Path) -> list[np.ndarray]:
    data = path.read_bytes()
    decoders = (
        Decoder(max_pixels=MAX_PIXELS),
        Decoder("L", max_pixels=MAX_PIXELS, draft_size=(2, 2)),
        Decoder(max_pixels=MAX_PIXELS, as_torchvision=True),
    )
    return [np.asarray(decode(data, str(path))) for decode in decoders]


def _compare_image(path: Path, first: list[np.ndarray]) -> None:
    for array, again in zip(first, _decode(path)):
        expect(array.dtype == np.uint8 and array.size > 0, "it has no pixels")
        expect(np.array_equal(array, again), "it has other pixels at the second time")


IMAGE = Target(
    name="image",
    seeds=_images,
    read=_decode,
    errors=(DataError,),
    compare=_compare_image,
    words=(
        b"IHDR", b"IDAT", b"PLTE", b"tRNS", b"eXIf", b"\xff\xda", b"\xff\xc2", b"\xff\xe1",
        b"Exif\0\0", b"II*\0", b"MM\0*", b"RIFF", b"WEBP", b"VP8X", b"GIF89a", b"BM", b"P6\n",
        b"8BPS", b"%!PS-Adobe",
    ),
)  # fmt: skip


# Images of two channels


def _channels(folder: Path) -> Iterator[bytes]:
    Image.init()  # imports all of Pillow's formats, as an unknown file would
    array = np.arange(20 * 18 * 2, dtype=np.uint16).reshape(20, 18, 2)
    for options in (
        dict(planarconfig="contig"),
        dict(compression="zlib", predictor=True, tile=(16, 16), byteorder=">"),
        dict(bigtiff=True, rowsperstrip=6),
    ):
        out = io.BytesIO()
        values = array if "planarconfig" in options else array.transpose(2, 0, 1)
        tifffile.imwrite(out, values, photometric="minisblack", metadata=None, **options)
        yield out.getvalue()
    out = io.BytesIO()
    np.save(out, array[:4, :5].astype(np.float32))
    yield out.getvalue()
    yield _image("PNG", "LA")
    yield _image("TIFF", "LA", compression="tiff_lzw")


def _read_channels(path: Path) -> np.ndarray:
    return np.asarray(Decoder(2, max_pixels=MAX_PIXELS)(path.read_bytes(), str(path)))


def _compare_channels(path: Path, first: np.ndarray) -> None:
    expect(first.shape[2] == 2 and 0 < first.size <= MAX_PIXELS, "it has another shape")
    expect(np.array_equal(first, _read_channels(path)), "it has other values at the second time")


CHANNELS = Target(
    name="channels",
    seeds=_channels,
    read=_read_channels,
    errors=(DataError,),
    compare=_compare_channels,
    words=(
        b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\x93NUMPY\1\0", b"'descr'", b"'<f4'", b"'|O'",
        b"'shape': (", b"'fortran_order': True", struct.pack("<HHII", 259, 3, 1, 5),
        struct.pack("<HHII", 317, 3, 1, 3), struct.pack("<HHII", 322, 4, 1, 16),
    ),
    may=("compile",),  # NumPy reads the header of a .npy as a literal
)  # fmt: skip

TARGETS = (TAR, TAR_CACHE, LMDB, CIFAR, IMAGE, CHANNELS)
