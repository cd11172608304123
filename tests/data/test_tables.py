"""Parquet and Arrow files of images: order, classes, forks, and files that are damaged or lie."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from image_files import encode, pixels
from made_tables import PAIR, save_to_disk, table, write_arrow, write_parquet

from libai_ext.data import parquet_source, retry
from libai_ext.data.arrow_source import ArrowImages
from libai_ext.data.decode import BadImage
from libai_ext.data.fingerprint import fingerprint
from libai_ext.data.parquet_source import ParquetImages
from libai_ext.data.sharded import shard_windows
from libai_ext.data.sources import open_images, open_source
from libai_ext.errors import DataError, DataUnavailable

NAMES = ["cat", "dog", "emu"]
FILES = [encode(pixels(seed)) for seed in range(10)]
LABELS = [0, 1, 2, 0, 1, 0, 0, 1, 2, 1]


def parts(names=NAMES):
    return [table(FILES[:4], LABELS[:4], names), table(FILES[4:], LABELS[4:], names)]


@pytest.fixture(params=["parquet", "arrow", "arrow file"])
def root(request, tmp_path):
    """Ten images in two files, in groups of three rows."""
    if request.param == "arrow":
        return "arrow:" + save_to_disk(tmp_path / "saved", parts())
    for number, part in enumerate(parts()):
        name = tmp_path / f"data/train-{number:05d}-of-00002"
        if request.param == "parquet":
            write_parquet(name.with_suffix(".parquet"), part, row_group_size=3)
        else:
            write_arrow(name.with_suffix(".arrow"), part, as_file=True)
    return f"{request.param.split()[0]}:{tmp_path}/data"


def same(source, index, seed):
    np.testing.assert_array_equal(np.asarray(source[index][0]), pixels(seed))


def test_windows_of_shards(root):
    """Row groups of Parquet, files of Arrow."""
    source = open_source(root)
    sizes = [3, 1, 3, 3] if isinstance(source.source, ParquetImages) else [4, 6]
    shards = shard_windows(source, 2)
    assert (list(shards.sizes), shards.window) == (sizes, 2)


def test_rows_classes_and_names(root):
    source = open_source(root)
    assert (len(source), source.classes, source.labels.tolist()) == (10, NAMES, LABELS)
    assert source.labels.dtype == np.int64
    for index in np.random.default_rng(0).permutation(10):
        same(source, index, index)
        assert source[index][1] == LABELS[index]
    files = [name.rsplit(":", 1) for name in map(source.name, range(10))]
    assert [int(row) for _, row in files] == [*range(4), *range(6)]
    assert files[3][0] < files[4][0] and all(os.path.isfile(file) for file, _ in files)
    sizes = {"parquet": [3, 1, 3, 3], "arrow": [4, 6]}[root.partition(":")[0]]
    assert source.source.shard_sizes == sizes
    with pytest.raises(IndexError):
        source.source[10]
    assert len(open_images([root])) == 10


def test_in_other_processes(root):
    """Forked, where files have been opened before, and by a pickle."""
    source = open_source(root)
    same(source, 0, 0)
    context = multiprocessing.get_context("fork")
    for copy in (source, pickle.loads(pickle.dumps(source))):

        def read(start, copy=copy):
            for index in np.random.default_rng(start).permutation(10):
                same(copy, index, index)

        workers = [context.Process(target=read, args=(start,)) for start in range(3)]
        for worker in workers:
            worker.start()
        read(7)
        for worker in workers:
            worker.join(60)
            assert worker.exitcode == 0


def test_the_fingerprint(root, tmp_path):
    first = fingerprint(open_source(root))
    moved = tmp_path / "moved"
    (tmp_path / ("saved" if (tmp_path / "saved").exists() else "data")).rename(moved)
    kind = root.partition(":")[0]
    assert fingerprint(open_source(f"{kind}:{moved}")) == first
    made = table(FILES[:4], [2, 2, 2, 2], NAMES)
    write = write_parquet if kind == "parquet" else write_arrow
    write(sorted(moved.glob(f"*.{kind}"))[0], made)
    assert fingerprint(open_source(f"{kind}:{moved}")) != first


def one(tmp_path, made, kind="parquet"):
    write = write_parquet if kind == "parquet" else write_arrow
    return f"{kind}:" + write(tmp_path / f"one.{kind}", made)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_columns(tmp_path, kind):
    def opened(made, query="", **options):
        return open_source(one(tmp_path, made, kind) + query, **options)

    # Plain bytes, numbers without names, no classes.
    source = opened(table(FILES[:3], [2, 0, 2], image="jpg", label="cls", as_struct=False))
    assert (source.classes, source.labels.tolist()) == (["0", "1", "2"], [2, 0, 2])
    same(source, 1, 1)
    source = opened(table(FILES[:3]))
    assert (source.classes, source.labels.tolist()) == ([""], [0, 0, 0])
    # Texts, and samples without a class.
    source = opened(table(FILES[:4], ["dog", "cat", None, "dog"]))
    assert (source.classes, source.labels.tolist()) == (["cat", "dog", ""], [1, 0, 2, 1])
    source = opened(table(FILES[:3], [-1, 1, -1], NAMES))
    assert (source.classes, source.labels.tolist()) == ([*NAMES, ""], [3, 1, 3])
    source = opened(table(FILES[:2], [-1, -1], NAMES))
    assert (source.classes, source.labels.tolist()) == ([""], [0, 0])
    # Several: Hugging Face's types, then an option decides.
    made = table(FILES[:3], [0, 1, 2], NAMES, image="photo", label="kind")
    made = made.append_column("image", pa.array(["a", "b", "c"]))
    assert opened(made).classes == NAMES
    made = table(FILES[:3], [0, 1, 2], image="img", label="fine_label")
    made = made.append_column("coarse_label", pa.array([5, 0, 1]))
    assert opened(made).classes == [""]
    source = opened(made, "?image=img&label=coarse_label")
    assert source.labels.tolist() == [5, 0, 1]
    assert opened(made.append_column("label", pa.array([1, 1, 1])), "?label=").classes == [""]
    # Any number of channels.
    channels = np.random.default_rng(0).integers(0, 256, (6, 5, 4), np.uint8)
    source = opened(table([encode(channels), encode(pixels())]), mode=4)
    np.testing.assert_array_equal(np.asarray(source[0][0]), channels)
    # A slice of an array whose other values are elsewhere in the file.
    source = opened(table(FILES, LABELS, NAMES).slice(4, 3))
    assert source.labels.tolist() == LABELS[4:7]
    for index in range(3):
        same(source, index, 4 + index)


ARRAY = pa.array([[1, 2], [3]], pa.list_(pa.int8()))
INNER = pa.struct([("bytes", pa.binary())])
WRONG = {
    "column image is struct<a: struct<bytes: binary>>; expected": pa.table(
        {"image": pa.array([{"a": {"bytes": FILES[0]}}], pa.struct([("a", INNER)]))}
    ),
    "has no column of images among text: name it": pa.table({"text": ["a"]}),
    "has the columns image, img: choose one by .image=COLUMN": pa.table(
        {"image": [b"a"], "img": [b"b"]}
    ),
    "has the columns label, cls: choose one by .label=COLUMN": pa.table(
        {"image": [b"a"], "label": [1], "cls": [1]}
    ),
    "column image is list<.*expected the bytes of image files": pa.table({"image": ARRAY}),
    "column label is list<.*expected numbers or texts": pa.table(
        {"image": [b"a", b"b"], "label": ARRAY}
    ),
    "column label is double; expected numbers": pa.table({"image": [b"a"], "label": [0.5]}),
    "column label, row 1: class 3 is not one of 3": table(FILES[:2], [2, 3], NAMES),
    "column label, row 0: class -2 is not one of 1,000,000": table(FILES[:2], [-2, 3]),
    "class 1000000 is not one of": table(FILES[:1], [10**6]),
    "the names of the classes of column label are not a list": table(FILES[:1], [0], ["a", "a"]),
    "its metadata huggingface cannot be read": table(FILES[:1], [0]).replace_schema_metadata(
        {"huggingface": '{"info": {"features": [1]}}'}
    ),
    "holds no rows": table([], pa.array([], pa.int64())),
}


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_tables_that_cannot_be_used(tmp_path, kind):
    for message, made in WRONG.items():
        with pytest.raises(DataError, match=rf"{tmp_path}/one.{kind}.*{message}"):
            open_source(one(tmp_path, made, kind))
    root = one(tmp_path, table(FILES[:1], [0]), kind)
    with pytest.raises(DataError, match="has no column pic: its columns are image, label"):
        open_source(f"{root}?image=pic")
    with pytest.raises(DataError, match="expected .*image=COLUMN&label=COLUMN, either one"):
        open_source(f"{root}?split=train")
    second = table(FILES[:1], [0], NAMES)
    for number, made in enumerate((table(FILES[:1], [0], NAMES[:2]), second)):
        write = write_parquet if kind == "parquet" else write_arrow
        write(tmp_path / f"two/{number}.{kind}", made)
    with pytest.raises(DataError, match=r"two/1.* has other columns or classes than .*two/0"):
        open_source(f"{kind}:{tmp_path}/two")


def test_which_files(tmp_path):
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        write_parquet(tmp_path / f"data/{name}.parquet", table(FILES[:2], [0, 1]))
    (tmp_path / "data/.hidden.parquet").write_bytes(b"")
    with pytest.raises(DataError, match="may be several data sets: .*test-00000.*Name a file"):
        open_source(f"parquet:{tmp_path}/data")
    assert len(open_source(f"parquet:{tmp_path}/data/train-*.parquet")) == 4
    assert len(open_source(f"{tmp_path}/data/test-00000-of-00001.parquet?label=")) == 2
    with pytest.raises(DataError, match="no file is .*data/val-"):
        open_source(f"parquet:{tmp_path}/data/val-*.parquet")
    with pytest.raises(DataError, match="cannot read .*none.parquet: No such file"):
        open_source(f"parquet:{tmp_path}/none.parquet")
    with pytest.raises(DataError, match="holds no .arrow file"):
        open_source(f"arrow:{tmp_path}/data")
    os.mkfifo(tmp_path / "pipe.parquet")
    for kind in ("parquet", "arrow"):
        with pytest.raises(DataError, match="cannot read .*pipe.parquet: not a regular file"):
            open_source(f"{kind}:{tmp_path}/pipe.parquet")

    saved = save_to_disk(tmp_path / "sets/train", parts())
    (tmp_path / "sets/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(DataError, match="sets holds the splits train, test: name one, as .*/train"):
        open_source(f"arrow:{tmp_path}/sets")
    with pytest.raises(DataError, match="no .parquet files: use arrow:"):
        open_source(f"parquet:{saved}")
    for state in ("{}", '{"_data_files": [{"filename": "../x.arrow"}]}', '{"_data_files": [1]}'):
        Path(saved, "state.json").write_text(state)
        with pytest.raises(DataError, match="state.json names no files"):
            open_source(f"arrow:{saved}")
    for state, message in (("{", "is not JSON"), ("[]", "is not a JSON object")):
        Path(saved, "state.json").write_text(state)
        with pytest.raises(DataError, match=f"state.json {message}"):
            open_source(f"arrow:{saved}")


def test_rows_without_an_image(tmp_path):
    rows = [{"bytes": FILES[0], "path": None}, {"bytes": None, "path": "/etc/passwd"}, None]
    made = pa.table({"image": pa.array([*rows, {"bytes": b"", "path": None}], PAIR)})
    for kind in ("parquet", "arrow"):
        source = open_source(one(tmp_path, made, kind)).source
        same(source, 0, 0)
        for index in (1, 2, 3):
            with pytest.raises(BadImage, match=rf"one.{kind}:{index}: (it has no bytes|.*empty)"):
                source[index]


def test_damaged_files(tmp_path):
    """Cut anywhere or with another byte: an error that names the file, or bad images, or images."""
    rng = np.random.default_rng(0)
    for kind in ("parquet", "arrow"):
        root = one(tmp_path, table(FILES, LABELS, NAMES), kind)
        path = tmp_path / f"one.{kind}"
        data, ends = path.read_bytes(), 0
        for end in rng.integers(0, len(data), 20):
            path.write_bytes(data[:end])
            try:
                len(open_source(root))
            except DataError as error:
                assert str(path) in str(error)
                ends += 1
        assert ends == 20 if kind == "parquet" else ends > 10
        for _ in range(150):
            damaged = bytearray(data)
            places = rng.integers(len(data) - 900, len(data), 2) if kind == "parquet" else (
                rng.integers(0, 2000, 2))  # fmt: skip
            damaged[places[0]] = damaged[places[1]] = rng.integers(256)
            path.write_bytes(damaged)
            try:
                source = open_source(root).source
                for index in range(min(len(source), 12)):
                    try:
                        source[index]
                    except BadImage as error:
                        assert str(path) in str(error)
            except DataError as error:
                assert str(path) in str(error)
        path.write_bytes(data)
        same(open_source(root), 4, 4)


def test_a_damaged_group(tmp_path):
    write_parquet(tmp_path / "x.parquet", table(FILES, LABELS), row_group_size=5)
    data = bytearray((tmp_path / "x.parquet").read_bytes())
    data[4:60] = b"\xff" * 56
    (tmp_path / "x.parquet").write_bytes(data)
    source = ParquetImages(f"{tmp_path}/x.parquet")
    with pytest.raises(BadImage, match=r"x.parquet:2: its group of rows is damaged"):
        source[2]
    same(source, 7, 7)


def test_a_file_cut_after_it_was_opened(tmp_path):
    path = Path(write_arrow(tmp_path / "x.arrow", table(FILES, LABELS)))
    source = ArrowImages(str(path))
    path.write_bytes(path.read_bytes()[:5000])
    same(source, 0, 0)
    with pytest.raises(BadImage, match=r"x.arrow:9: the shard ends after 0 of"):
        source[9]


def test_compressed_arrow_is_refused(tmp_path):
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    write_arrow(tmp_path / "x.arrow", table(FILES, LABELS), options=options)
    with pytest.raises(DataError, match="x.arrow is compressed: write it again without"):
        ArrowImages(f"{tmp_path}/x.arrow")


def test_memory_is_bounded(tmp_path, monkeypatch, caplog):
    """Groups are dropped; more rows than bytes, and a group that is larger than it says."""
    monkeypatch.setattr(parquet_source, "CACHE_BYTES", 3 * max(map(len, FILES)))
    path = write_parquet(tmp_path / "x.parquet", table(FILES), row_group_size=1)
    source = ParquetImages(path)
    for index in (*range(10), *range(10)):
        same(source, index, index)
        assert len(source._groups) <= 4
    assert list(source._groups)[-3:] == [7, 8, 9]

    zeros = table([FILES[0]] * 30_000, as_struct=False)
    write_parquet(tmp_path / "rows.parquet", zeros, compression="zstd")
    with pytest.raises(DataError, match="rows.parquet: 30,000 rows, more than its bytes can hold"):
        ParquetImages(f"{tmp_path}/rows.parquet")

    monkeypatch.setattr(parquet_source, "_MAX_GROUP", 6 * len(FILES[0]))
    write_parquet(tmp_path / "large.parquet", table(FILES))
    with pytest.raises(DataError, match="GiB of images in a group of rows: write it again"):
        ParquetImages(f"{tmp_path}/large.parquet")
    repeated = table([FILES[0]] * 100, as_struct=False)  # of which the file holds one
    write_parquet(tmp_path / "repeated.parquet", repeated)
    with pytest.raises(BadImage, match="is damaged: more bytes than its index says"):
        ParquetImages(f"{tmp_path}/repeated.parquet")[0]

    monkeypatch.setattr(parquet_source, "_MAX_GROUP", 1 << 30)
    monkeypatch.setattr(parquet_source, "_LARGE_GROUP", 1000)
    write_parquet(tmp_path / "slow.parquet", table(FILES), row_group_size=5)
    ParquetImages(f"{tmp_path}/slow.parquet")
    assert "slow.parquet has up to 0 MiB of images in a group of rows" in caplog.text


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_a_failing_disk(tmp_path, monkeypatch, number):
    """Is told from a damaged file."""
    path = write_parquet(tmp_path / "x.parquet", table(FILES), row_group_size=5)
    source = ParquetImages(path)

    class Failing:
        def __init__(self, file):
            self.file, self.closed = file, False

        def __getattr__(self, name):
            return getattr(self.file, name)

        def read(self, *size):
            raise OSError(number, os.strerror(number), path)

    real = parquet_source.open_regular
    source._files[1].clear()
    monkeypatch.setattr(retry, "RETRY_SECONDS", 0.2)
    monkeypatch.setattr(parquet_source, "open_regular", lambda name: Failing(real(name)))
    error = DataUnavailable if number == errno.EIO else DataError
    with pytest.raises(error, match=f"cannot read {path}: {os.strerror(number)}"):
        source[0]
    monkeypatch.setattr(parquet_source, "open_regular", real)
    same(source, 0, 0)


def test_without_pyarrow(tmp_path, monkeypatch):
    root = one(tmp_path, table(FILES[:1]))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"one.parquet needs the package pyarrow.*'.\[parquet\]'"):
        open_source(root)
