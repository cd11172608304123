"""Data that is cut short, lies or is no file: an error that names it, soon, in little memory."""

from __future__ import annotations

import io
import os
import pickle
import resource
import signal
import socket
import struct
import tarfile
import time
import zlib
from pathlib import Path

import lmdb
import numpy as np
import pytest
from image_files import encode, pixels
from made_sets import cifar_pixels, python2_pickle, write_cifar10, write_lmdb, write_tar
from PIL import Image

from libai_ext.data import decode
from libai_ext.data.cifar import Cifar10
from libai_ext.data.classes import read_names
from libai_ext.data.decode import BadImage, Decoder
from libai_ext.data.image_folder import ImageFiles
from libai_ext.data.listed import ListedImages
from libai_ext.data.lmdb_file import LmdbError, LmdbFile
from libai_ext.data.lmdb_source import LmdbImages
from libai_ext.data.tar_shards import TarShards, load_index
from libai_ext.data.walk import Walk
from libai_ext.errors import DataError

MEGABYTES, SECONDS = 600, 3


@pytest.fixture(autouse=True)
def bounded(tmp_path, monkeypatch):
    """Each test has little time and memory: what waits for ever or fills it fails."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (MEGABYTES << 20), before[1]))
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(10)
    start = time.process_time()
    yield
    signal.alarm(0)
    resource.setrlimit(resource.RLIMIT_AS, before)
    assert time.process_time() - start < SECONDS


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


# LMDB


def written(folder, rows):
    with lmdb.open(str(folder), map_size=1 << 27) as environment:
        with environment.begin(write=True) as change:
            for key, value in rows.items():
                change.put(key, value)
    return str(folder / "data.mdb")


def rows_of_all_sizes(count=3000):
    rng = np.random.default_rng(0)
    sizes = rng.choice([0, 1, 500, 2000, 2030, 4064, 4080, 4081, 9000], count)
    return {b"%09d" % (7 * i): rng.bytes(size) for i, size in enumerate(sizes)}


def test_all_values_of_an_lmdb(tmp_path):
    """As LMDB's own library has them: in pages, in pages of their own, after deletions."""
    rows = rows_of_all_sizes()
    path = written(tmp_path, rows)
    with lmdb.open(str(tmp_path), map_size=1 << 27) as environment:
        change = environment.begin(write=True)
        for key in list(rows)[::5]:
            change.delete(key)
            del rows[key]
        change.commit()
        assert environment.stat()["depth"] >= 3
    file = LmdbFile(path)
    for number in range(7 * 3000):
        key = b"%09d" % number
        assert file.get(key, 10**6) == rows.get(key)
    assert [file.get(key, 10**6) for key in (b"", b"0", b"9", b"~" * 600)] == [None] * 4
    assert pickle.loads(pickle.dumps(file)).get(b"000000007", 10**6) == rows[b"000000007"]


def test_an_lmdb_that_somebody_writes_to(tmp_path):
    file = LmdbFile(written(tmp_path, {b"a": b"1"}))
    written(tmp_path, {b"a": b"2", b"b": bytes(10_000)})
    assert (file.get(b"a", 9), file.get(b"b", 10**6)) == (b"2", bytes(10_000))
    with pytest.raises(LmdbError, match="has 10,000 bytes"):
        file.get(b"b", 9999)


def test_an_lmdb_cut_short(tmp_path):
    root = write_lmdb(tmp_path / "a", [encode(pixels(seed)) * 9 for seed in range(9)])
    path = f"{root}/data.mdb"
    whole = Path(path).read_bytes()
    source = LmdbImages(root)
    for size in range(len(whole) - 4096, -1, -4096):
        os.truncate(path, size)
        with pytest.raises(DataError, match="a/data.mdb: it is truncated: "):
            LmdbImages(root)
        with pytest.raises(BadImage, match="the LMDB is damaged: it is truncated"):
            for index in range(9):  # the first page that is missing ends it
                source[index]
    Path(path).write_bytes(whole)
    np.testing.assert_array_equal(source[8][0], pixels(8))


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_lmdb(tmp_path, seed):
    """Nothing but the reader's own error, whatever bytes there are; some values stay readable."""
    rows = dict(list(rows_of_all_sizes(300).items()))
    path = written(tmp_path, rows)
    whole = Path(path).read_bytes()
    rng = np.random.default_rng(seed)
    ends = []
    for count in (1, 10, 100, 3000) * 25:
        content = np.frombuffer(whole, np.uint8).copy()
        places = rng.integers(0, len(content) if count % 3 else 8192, count)
        content[places] = rng.choice([0, 1, 255, 128], count)
        Path(path).write_bytes(content.tobytes())
        try:
            file = LmdbFile(path)
            ends += [type(file.get(key, 10**5)) for key in list(rows)[::30]]
        except LmdbError as error:
            ends.append(type(error))
    assert set(ends) == {bytes, LmdbError} or set(ends) == {bytes, LmdbError, type(None)}


@pytest.mark.parametrize("count", [b"99999999999", b"9" * 5000, b"1e3", "²".encode(), b"-1", b""])
def test_the_number_of_samples_of_an_lmdb(tmp_path, count):
    rows = {b"num-samples": count, b"image-000000001": encode(pixels(0))}
    written(tmp_path, rows)
    with pytest.raises(DataError, match="num-samples"):
        LmdbImages(str(tmp_path))


def test_an_lmdb_of_another_kind(tmp_path):
    path = written(tmp_path, {b"a": b"1"})
    with lmdb.open(str(tmp_path), max_dbs=2) as environment:
        environment.open_db(b"inner")
    with pytest.raises(LmdbError, match="is of another kind"):
        LmdbFile(path).get(b"inner", 10**6)
    content = bytearray(Path(path).read_bytes())
    for meta in (0, 4096):
        content[meta + 16 + 24 + 48 + 4] |= 4  # MDB_DUPSORT of the main database
    Path(path).write_bytes(content)
    with pytest.raises(LmdbError, match="it is a database of another kind .flags 0x4"):
        LmdbFile(path)


# Tar shards


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
