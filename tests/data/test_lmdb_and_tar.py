"""LMDBs and tar shards on files in their format, read in any order and by several processes."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import tarfile

import lmdb
import numpy as np
import pytest
from image_files import encode, pixels
from made_sets import write_lmdb, write_tar

from libai_ext.data import tar_shards, walk
from libai_ext.data.decode import BadImage
from libai_ext.data.lmdb_source import LmdbImages
from libai_ext.data.tar_shards import TarShards, expand_braces
from libai_ext.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/libai_ext/tar_index"


def png(seed):
    return encode(pixels(seed))


def in_children(source, indices):
    """What forked processes read, one process an index, the parent having read already."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def read(index):
        image, label = source[index]
        queue.put((index, np.asarray(image), label))

    processes = [context.Process(target=read, args=(index,)) for index in indices]
    for process in processes:
        process.start()
    read = sorted((queue.get(timeout=20) for _ in processes), key=lambda row: row[0])
    for process in processes:
        process.join(20)
    return read


def check_across_processes(source):
    expected = [np.asarray(source[index][0]) for index in range(3)]
    for index, image, label in in_children(source, [0, 1, 2]):
        np.testing.assert_array_equal(image, expected[index])
        assert label == source[index][1]
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[2][0], expected[2])
    np.testing.assert_array_equal(source[0][0], expected[0])


def test_lmdb(tmp_path):
    root = write_lmdb(tmp_path / "a", [png(0), encode(pixels(1), "JPEG"), png(2)])
    source = LmdbImages(root)
    assert (len(source), source.classes) == (3, [""])
    np.testing.assert_array_equal(source[0][0], pixels(0))
    np.testing.assert_array_equal(source[2][0], pixels(2))
    assert np.abs(np.asarray(source[1][0], int) - pixels(1)).mean() < 5
    assert [source[i][1] for i in range(3)] == [0, 0, 0]
    assert LmdbImages(root, mode="L")[0][0].mode == "L"
    with pytest.raises(IndexError):
        source[3]
    assert sorted(os.listdir(root)) == ["data.mdb", "lock.mdb"]  # the writer's


def test_lmdb_in_other_processes(tmp_path):
    root = write_lmdb(tmp_path / "a", [png(i) for i in range(3)], labels=False)
    check_across_processes(LmdbImages(root))
    # Two sources on one folder, as train and test: LMDB itself forbids to open it twice.
    first, second = LmdbImages(root), LmdbImages(root + "/../a")
    np.testing.assert_array_equal(first[1][0], second[1][0])


def test_lmdb_on_read_only_media(tmp_path):
    root = write_lmdb(tmp_path / "a", [png(0)])
    os.unlink(f"{root}/lock.mdb")
    os.chmod(root, 0o555)
    assert len(LmdbImages(root)) == 1
    assert os.listdir(root) == ["data.mdb"]


def test_unusable_lmdbs(tmp_path):
    source = LmdbImages(write_lmdb(tmp_path / "a", [png(0), None, b"no picture", b""]))
    for index, why in ((1, "the key is missing"), (2, "unknown image format"), (3, "is empty")):
        with pytest.raises(BadImage, match=f"a:image-00000000{index + 1}: .*{why}"):
            source[index]
    with pytest.raises(DataError, match="b has no usable|b/data.mdb has no usable key num-samples"):
        LmdbImages(write_lmdb(tmp_path / "b", []))
    short = write_lmdb(tmp_path / "short", [png(0), png(1), png(2)])
    with lmdb.open(short) as environment, environment.begin(write=True) as change:
        change.put(b"num-samples", b"2")
    with pytest.raises(DataError, match="num-samples is 2, but there is an image-000000003"):
        LmdbImages(short)
    (tmp_path / "c").mkdir()
    (tmp_path / "c/data.mdb").write_bytes(b"no database")
    with pytest.raises(DataError, match="c/data.mdb: it is truncated: 11 bytes"):
        LmdbImages(str(tmp_path / "c"))


def members(first, count):
    for number in range(first, first + count):
        yield f"{number:06d}.cls", str(number % 7).encode()
        yield f"{number:06d}.json", b"{}"
        yield f"{number:06d}.png", png(number)


@pytest.fixture
def shards(tmp_path):
    for number in range(3):
        write_tar(tmp_path / f"s/shard-{number:02d}.tar", members(4 * number, 4))
    return str(tmp_path / "s/shard-{00..02}.tar")


def test_tar_shards(shards, cache):
    source = TarShards(shards)
    assert (len(source), source.classes) == (12, list("0123456"))
    for index in np.random.default_rng(0).permutation(12):
        image, label = source[index]
        np.testing.assert_array_equal(image, pixels(index))
        assert (label, type(label)) == (index % 7, int)
    # An independent reading of one sample.
    with tarfile.open(shards.replace("{00..02}", "01")) as tar:
        assert tar.extractfile("000005.png").read() == png(5)
    assert len(list(cache.glob("*.npz"))) == 3


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_tar_formats_and_names(tmp_path, form):
    long = "a" * 90 + "/" + "b" * 90  # more than the header's 100 bytes
    rows = [
        ("./x/1.jpg", encode(pixels(1), "JPEG")),
        ("./x/1.cls", b" 3\n"),
        ("./x/2.mask.png", b"not the image"),
        ("./x/2.PNG", png(2)),
        ("./x/2.jpg", b"a second image is not looked at"),
        ("./x/2.cls", b"0"),
        ("./y/2.png", png(4)),
        ("./y/2.cls", b"1"),
        (f"{long}.png", png(3)),
        (f"{long}.cls", b"2"),
    ]
    source = TarShards(write_tar(tmp_path / "x.tar", rows, format=form))
    assert [source[i][1] for i in range(len(source))] == [3, 0, 1, 2]
    for index, seed in ((1, 2), (2, 4), (3, 3)):
        np.testing.assert_array_equal(source[index][0], pixels(seed))


def test_tar_shards_in_other_processes(shards):
    check_across_processes(TarShards(shards))


def test_more_shards_than_open_files(shards, monkeypatch):
    monkeypatch.setattr(tar_shards, "_OPEN_FILES", 2)
    source = TarShards(shards)
    before = len(os.listdir("/proc/self/fd"))
    for index in (0, 4, 8, 0, 11, 5, 2):
        np.testing.assert_array_equal(source[index][0], pixels(index))
    assert len(os.listdir("/proc/self/fd")) - before <= 2


def test_the_index_is_made_once_and_again_for_a_changed_shard(shards, cache, monkeypatch):
    scanned = []
    scan = tar_shards.scan
    monkeypatch.setattr(tar_shards, "scan", lambda path: scanned.append(path) or scan(path))
    first, again = TarShards(shards), TarShards(shards)
    assert len(scanned) == 3
    np.testing.assert_array_equal(again[7][0], first[7][0])
    path = shards.replace("{00..02}", "01")
    write_tar(tar_shards.Path(path), members(100, 2))
    assert (len(TarShards(shards)), len(scanned)) == (10, 4)
    for file in cache.glob("*.npz"):
        file.write_bytes(b"damaged")
    assert (len(TarShards(shards)), len(scanned)) == (10, 7)
    assert (len(TarShards(shards)), len(scanned)) == (10, 7)
    # Other rules find other samples, in what an older version scanned as well.
    monkeypatch.setattr(tar_shards, "VERSION", tar_shards.VERSION + 1)
    assert (len(TarShards(shards)), len(scanned)) == (10, 10)
    monkeypatch.setattr(tar_shards, "EXTENSIONS", (*tar_shards.EXTENSIONS, ".new"))
    assert (len(TarShards(shards)), len(scanned)) == (10, 13)


def test_without_a_cache_folder(shards, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert len(TarShards(shards)) == 12
    assert "no index cache" in caplog.messages[0]


def test_shards_without_classes(tmp_path):
    source = TarShards(write_tar(tmp_path / "x.tar", [("1.png", png(1)), ("2.png", png(2))]))
    assert (source.classes, source[1][1]) == ([""], 0)


def test_unusable_shards(tmp_path):
    with pytest.raises(DataError, match="shard .*none.tar: No such file"):
        TarShards(str(tmp_path / "none.tar"))
    (tmp_path / "x.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(DataError, match="x.tar is no plain .uncompressed. tar file"):
        TarShards(str(tmp_path / "x.tar"))
    write_tar(tmp_path / "z.tar", [("1.png", png(1))], mode="w:gz")
    with pytest.raises(DataError, match="z.tar is no plain .uncompressed. tar file"):
        TarShards(str(tmp_path / "z.tar"))
    with pytest.raises(DataError, match="no image .*e.tar"):
        TarShards(write_tar(tmp_path / "e.tar", [("1.txt", b"text")]))
    with pytest.raises(DataError, match="half.tar:2.png has no .cls"):
        rows = [("1.png", png(1)), ("1.cls", b"1"), ("2.png", png(2))]
        TarShards(write_tar(tmp_path / "half.tar", rows))
    with pytest.raises(DataError, match="word.tar:1.cls holds 'cat', not a class number"):
        TarShards(write_tar(tmp_path / "word.tar", [("1.cls", b"cat"), ("1.png", png(1))]))


CLASSES = [(f"{n:04d}.cls", b"%d" % n) for n in range(4)]
IMAGES = [(f"{n:04d}.png", png(n)) for n in range(4)]


@pytest.mark.parametrize(
    "rows",
    [
        CLASSES + IMAGES,
        IMAGES + CLASSES,
        IMAGES[:2] + CLASSES[::-1] + IMAGES[2:],
        [row for pair in zip(IMAGES, reversed(CLASSES)) for row in pair],
        [(name.replace(".cls", ".label.cls"), data) for name, data in CLASSES] + IMAGES,
        CLASSES + [(name.replace(".png", ".input.png"), data) for name, data in IMAGES],
    ],
    ids=["classes first", "images first", "between", "crosswise", "named", "input"],
)
def test_classes_apart_from_their_images_find_them(tmp_path, rows):
    source = TarShards(write_tar(tmp_path / "x.tar", rows))
    assert (len(source), source.classes) == (4, list("0123"))
    for index in range(4):
        image, label = source[index]
        np.testing.assert_array_equal(image, pixels(label))


@pytest.mark.parametrize("extension", ["input.png", "rgb.PNG", "v1.2.png", "0.jpg.png"])
def test_an_image_with_a_second_dot_in_its_name(tmp_path, extension):
    rows = [(f"0000.{extension}", png(5)), ("0000.cls", b"3"), ("0000.txt", b"a caption")]
    image, label = TarShards(write_tar(tmp_path / "x.tar", rows))[0]
    np.testing.assert_array_equal(image, pixels(5))
    assert label == 3


def test_the_plain_name_is_the_image(tmp_path, caplog):
    rows = [("1.seg.png", png(1)), ("1.png", png(2)), ("1.cls", b"0"), ("._1.png", b"finder")]
    with caplog.at_level(logging.WARNING):
        source = TarShards(write_tar(tmp_path / "x.tar", rows))
    np.testing.assert_array_equal(source[0][0], pixels(2))
    assert len(source) == 1
    said = "skipped 1 further images of samples (.seg.png), 1 hidden (._*)"
    assert caplog.messages == [f"{tmp_path}/x.tar: {said}"]


def test_what_shards_hold_beside_images_is_counted_from_the_cache_too(shards, caplog):
    TarShards(shards)
    for heard in (0, 1):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            TarShards(shards)
        found = [f"{shards}: skipped 12 members that are not images (.json 12)"]
        assert caplog.messages == found[:heard]
        walk.warn_once.cache_clear()


@pytest.mark.parametrize(
    "rows, message",
    [
        ([*IMAGES, *CLASSES, ("0009.cls", b"1")], "x.tar:0009.cls is a class without an image"),
        ([("1.input.png", png(0)), ("1.target.png", png(1))], "1.input.png and 1.target.png are"),
        (
            [("1.cls", b"1"), *IMAGES, ("1.cls", b"2"), ("1.png", b"")],
            "x.tar:1.cls is a class without an image",
        ),
        ([("1.cls", b"1"), ("1.b.cls", b"2"), ("1.png", b"")], "1.b.cls is a second class of its"),
        ([("1.cls", b"1"), *IMAGES, ("1.png", b""), *IMAGES, ("1.png", b"")], "several images or"),
        ([("1.cls", b"9999999"), ("1.png", b"")], "1.cls holds '9999999', not a class number"),
        ([("1.heic", b""), ("1.cls", b"1")], "1.heic: .heic images cannot be read"),
    ],
)
def test_shards_that_would_lose_images_or_classes(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        TarShards(write_tar(tmp_path / "x.tar", rows))


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_links_in_a_shard_would_lose_images(tmp_path, kind):
    with tarfile.open(write_tar(tmp_path / "x.tar", IMAGES), "a") as tar:
        link = tarfile.TarInfo("0009.png")
        link.type, link.linkname = kind, "0001.png"
        tar.addfile(link)
    with pytest.raises(DataError, match="x.tar:0009.png is a link, a sparse or a special file"):
        TarShards(str(tmp_path / "x.tar"))


def test_bad_members(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("1.png", b""), ("2.png", b"no"), ("3.png", png(3))])
    source = TarShards(path)
    for index, why in ((0, "is empty"), (1, "unknown image format")):
        with pytest.raises(BadImage, match=f"x.tar:{index + 1}.png: .*{why}"):
            source[index]
    os.truncate(path, int(source._offset[2]) + 100)
    with pytest.raises(BadImage, match="x.tar:3.png: the shard ends after 100 of"):
        source[2]


@pytest.mark.parametrize(
    "pattern, paths",
    [
        ("a.tar", ["a.tar"]),
        ("a-{08..10}.tar", ["a-08.tar", "a-09.tar", "a-10.tar"]),
        ("a-{8..10}.tar", ["a-8.tar", "a-9.tar", "a-10.tar"]),
        ("{x,yz}/{0..1}.tar", ["x/0.tar", "x/1.tar", "yz/0.tar", "yz/1.tar"]),
    ],
)
def test_braces(pattern, paths):
    assert expand_braces(pattern) == paths


def test_a_user_without_a_home_has_no_index_cache(tmp_path, monkeypatch, caplog):
    write_tar(tmp_path / "s.tar", [("0.png", encode(pixels()))])
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 987654)
    monkeypatch.chdir(tmp_path)
    assert len(TarShards("s.tar")) == 1
    assert "no index cache, s.tar is scanned at each start: this user has no home" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["s.tar"]
