"""Tar shards and CIFAR batches that are cut short or lie: an error that names them, soon, in little
memory."""

from __future__ import annotations

import io
import os
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from image_files import encode, pixels
from made_sets import cifar_pixels, python2_pickle, write_cifar10, write_tar

from libai_ext.data import decode
from libai_ext.data.cifar import Cifar10
from libai_ext.data.decode import BadImage
from libai_ext.data.tar_shards import TarShards, load_index
from libai_ext.errors import DataError

pytestmark = pytest.mark.usefixtures("bounded")


def shard(folder, count=3):
    rows = [
        row
        for number in range(count)
        for row in ((f"{number}.png", encode(pixels(number))), (f"{number}.cls", b"%d" % number))
    ]
    return write_tar(folder / "x.tar", rows)


def damages(intact: bytes):
    """What may lie in the place of an index, by name."""
    columns = dict(np.load(io.BytesIO(intact), allow_pickle=False))

    def saved(**changed):
        file = io.BytesIO()
        np.savez(file, **{**columns, **changed})
        return file.getvalue()

    array, objects = io.BytesIO(), io.BytesIO()
    np.save(array, columns["size"])
    np.savez(objects, **dict(columns, name=np.array([Harmful()], object)))
    return {
        "empty": b"",
        "text": b"damaged",
        "cut": intact[: len(intact) // 2],
        "no end": intact[:-22],
        "flipped": intact[:200] + bytes([intact[200] ^ 255]) + intact[201:],
        "an array": array.getvalue(),
        "objects": objects.getvalue(),
        "other lengths": saved(size=columns["size"][:1]),
        "other types": saved(offset=columns["offset"].astype(np.float64)),
        "negative": saved(offset=columns["offset"] - 10**9),
        "skipped": saved(skipped=np.array([b"no tabs"])),
        "named numbers": saved(name=columns["size"]),
    }


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_a_damaged_index_is_made_again(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    path = shard(tmp_path)
    expected = load_index(path)
    (cached,) = (tmp_path / "cache/libai_ext/tar_index").glob("*.npz")
    intact = cached.read_bytes()
    for name, content in damages(intact).items():
        caplog.clear()
        cached.write_bytes(content)
        found = load_index(path)
        assert f"index cache {cached} is damaged and is built again" in caplog.text, name
        for left, right in zip(found, expected):
            np.testing.assert_array_equal(left, right, err_msg=name)
        caplog.clear()
        load_index(path)
        assert caplog.messages == [], name
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("content", [b"999999999999", b"-1", b"1000000", b"1e5", "٣".encode()])
def test_class_numbers_of_a_shard(tmp_path, content):
    with pytest.raises(DataError, match="1.cls holds .*, not a class number"):
        TarShards(write_tar(tmp_path / "x.tar", [("1.png", b""), ("1.cls", content)]))


def claiming(path, size, kind=tarfile.REGTYPE, name="1.png"):
    """A shard of one member that claims a size, in a sparse file of that size."""
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    with open(path, "wb") as file:
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        file.truncate(size + 10240)
    return str(path)


def test_a_member_of_40_gigabytes(tmp_path):
    source = TarShards(claiming(tmp_path / "x.tar", 40 << 30))
    with pytest.raises(BadImage, match="x.tar:1.png: 42,949,672,960 bytes, more than any image"):
        source[0]


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
def test_a_header_of_40_gigabytes(tmp_path, kind):
    with pytest.raises(DataError, match="x.tar is no plain .uncompressed. tar file: a header of"):
        TarShards(claiming(tmp_path / "x.tar", 40 << 30, kind))


def test_sparse_members_and_endless_names(tmp_path):
    with pytest.raises(DataError, match="x.tar:1.png is a link, a sparse or a special file"):
        TarShards(claiming(tmp_path / "x.tar", 512, tarfile.GNUTYPE_SPARSE))
    path = write_tar(tmp_path / "y.tar", [("a/" * 3000 + "1.png", b"")])
    with pytest.raises(DataError, match="y.tar: a name of 6,005 bytes"):
        TarShards(path)


@pytest.mark.parametrize("seed", range(2))
def test_damaged_headers(tmp_path, seed):
    whole = np.frombuffer(Path(shard(tmp_path)).read_bytes(), np.uint8)
    rng = np.random.default_rng(seed)
    for count in (1, 3, 30) * 20:
        content = whole.copy()
        content[rng.integers(0, 1536, count)] = rng.integers(0, 256, count)
        (tmp_path / "y.tar").write_bytes(content.tobytes())
        try:
            TarShards(str(tmp_path / "y.tar"))
        except DataError as error:
            assert "y.tar" in str(error)


# CIFAR


def nested(item: bytes, depth: int, kind: bytes) -> bytes:
    """A container that holds the one before twice, so many times."""
    content = item
    for number in range(depth):
        put = b"r" + struct.pack("<I", number)
        get = b"j" + struct.pack("<I", number)
        content = content + put + b"0" + (b"(" + get + get + b"l" if kind == b"l" else b"")
        content += b"](" + get + get + b"e" if kind == b"]" else get + get + b"\x86"
    return content


def cifar_bombs():
    pair, doubled = nested(b")", 60, b"\x86"), nested(b"]K\x01a", 60, b"]")
    data, labels = python2_pickle({"data": cifar_pixels(0, 1)})[3:-2], b"U\x06labels"
    return {
        "hashed": b"\x80\x02}" + pair + b"K\x01s.",
        "hashed in a set": b"\x80\x02(" + pair + b"\x91.",
        "label": b"\x80\x02}" + labels + b"](" + doubled + b"es.",
        "labels": b"\x80\x02}(" + data + labels + doubled + b"u.",
        "memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
        "steps": b"\x80\x02" + b"N0" * 2_000_000 + b".",
        "number": b"\x80\x02}" + labels + b"]\x8b\xff\xff\xff\x00" + bytes(1 << 20) + b"as.",
        "length": b"\x80\x02T\xff\xff\xff\xff.",
        "frame": b"\x80\x04\x95" + bytes(7) + b"\x7f.",
        "shape": python2_pickle({"data": cifar_pixels(0, 1), "labels": [0]}).replace(
            struct.pack("<i", 3072), struct.pack("<i", 2**30)
        ),
    }


@pytest.mark.parametrize("kind", cifar_bombs())
def test_cifar_bombs(tmp_path, kind):
    folder = write_cifar10(tmp_path)
    for file in ("test_batch", "batches.meta"):
        sound = (folder / file).read_bytes()
        (folder / file).write_bytes(cifar_bombs()[kind])
        with pytest.raises(DataError, match=file):
            Cifar10(tmp_path, "test")
        (folder / file).write_bytes(sound)
    assert len(Cifar10(tmp_path, "test")) == 4


def test_a_batch_as_large_as_the_published_ones(tmp_path):
    """The training data of CIFAR-100 in its steps: four lists of 50,000."""
    folder = write_cifar10(tmp_path)
    count = 50_000
    content = {
        "filenames": [f"{number}.png" for number in range(count)],
        "labels": [number % 10 for number in range(count)],
        "coarse_labels": [0] * count,
        "data": np.zeros((count, 3072), np.uint8),
    }
    (folder / "test_batch").write_bytes(python2_pickle(content))
    source = Cifar10(tmp_path, "test")
    assert (len(source), source[count - 1][1]) == (count, 9)
    assert decode.MAX_BYTES > 153_600_000
