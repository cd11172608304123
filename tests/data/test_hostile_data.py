"""Data that is cut short, lies or is no file: an error that names it, soon, in little memory."""

from __future__ import annotations

import io
import os
import socket
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from made_sets import write_cifar10
from PIL import Image

from libai_ext.data.cifar import Cifar10
from libai_ext.data.classes import read_names
from libai_ext.data.decode import BadImage, Decoder
from libai_ext.data.image_folder import ImageFiles
from libai_ext.data.listed import ListedImages
from libai_ext.data.tar_shards import TarShards
from libai_ext.data.walk import Walk
from libai_ext.errors import DataError

pytestmark = pytest.mark.usefixtures("bounded")


def special_files(folder):
    """Paths of what is no regular file, by kind."""
    os.mkfifo(folder / "pipe")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(folder / "socket"))
    (folder / "link").symlink_to("pipe")
    return [*(str(folder / name) for name in ("pipe", "socket", "link")), "/dev/zero", "/dev/tty"]


READERS = {
    "image": lambda path: ImageFiles([(path, 0)], [""])[0],
    "list": lambda path: ListedImages(path, "/nowhere"),
    "classes": read_names,
    "shard": TarShards,
}


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_regular_file_is_not_opened(tmp_path, monkeypatch, reader):
    monkeypatch.chdir(tmp_path)  # a socket's name is short
    for path in special_files(Path(".")):
        with pytest.raises(DataError, match=f"{path}.*not a regular file"):
            READERS[reader](path)


def test_a_cifar_batch_that_is_none(tmp_path):
    folder = write_cifar10(tmp_path)
    (folder / "test_batch").unlink()
    os.mkfifo(folder / "test_batch")
    with pytest.raises(DataError, match="does not hold .*test_batch"):
        Cifar10(tmp_path, "test")


def test_links_in_circles(tmp_path):
    """Each other's folder, and itself."""
    for name, target in (("a/to_b", "../b"), ("b/to_a", "../a"), ("a/here", "."), ("top", ".")):
        link = tmp_path / name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(target)
    (tmp_path / "a/1.png").write_bytes(b"")
    walk = Walk(str(tmp_path))
    found = [os.path.relpath(path, tmp_path) for path in walk.images(walk.root)]
    assert found == ["a/1.png", "b/to_a/1.png"]
    assert "links to a folder around them" in str(walk.skipped)
    (tmp_path / "itself.png").symlink_to("itself.png")
    with pytest.raises(DataError, match="itself.png: Too many levels of symbolic links"):
        Walk(str(tmp_path)).entries(str(tmp_path))


def png(width, height, color=2, depth=8, data=b""):
    """A PNG that claims a size, with ``data`` as its compressed pixels."""

    def chunk(kind, content):
        crc = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(90_000_000, 1), (1, 90_000_000), (65_536, 1000)])
@pytest.mark.parametrize("color, depth", [(0, 8), (2, 8), (6, 16), (3, 1)])
def test_images_with_a_side_beyond_all_formats(size, color, depth):
    assert len(png(*size, color, depth)) == 65
    with pytest.raises(BadImage, match=f"{size[0]} x {size[1]} pixels: a side of more than 65535"):
        Decoder()(png(*size, color, depth), "x.png")


def test_the_longest_side_is_read():
    row = bytes(1 + 65_535)
    assert Decoder("L")(png(65_535, 2, 0, 8, 2 * row), "x.png").size == (65_535, 2)


def scanned(scans, size=(1000, 1000)):
    """A progressive JPEG whose last scan is there so many times."""
    file = io.BytesIO()
    Image.new("L", size, 100).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last = content[content.rfind(b"\xff\xda") : -2]
    return content[:-2] + last * (scans - content.count(b"\xff\xda")) + b"\xff\xd9"


@pytest.mark.parametrize("scans, size", [(200, (1000, 1000)), (101, (8, 8)), (50, (8000, 8000))])
def test_jpegs_of_many_scans(scans, size):
    with pytest.raises(BadImage, match=f"{scans} scans of {size[0]} x {size[1]} pixels"):
        Decoder()(scanned(scans, size), "x.jpg")


def test_jpegs_of_some_scans_are_read():
    image = Decoder()(scanned(100, (64, 64)), "x.jpg")
    np.testing.assert_array_equal(np.asarray(image), 100)


def test_a_file_larger_than_any_image(tmp_path):
    with open(tmp_path / "x.png", "wb") as file:
        file.truncate(40 << 30)
    with pytest.raises(DataError, match="x.png: larger than 1024 MiB"):
        READERS["image"](str(tmp_path / "x.png"))
