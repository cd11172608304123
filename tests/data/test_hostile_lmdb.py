"""LMDBs that are cut short or lie: an error that names them, soon, in little memory."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import lmdb
import numpy as np
import pytest
from image_files import encode, pixels
from made_sets import write_lmdb

from libai_ext.data.decode import BadImage
from libai_ext.data.lmdb_file import LmdbError, LmdbFile
from libai_ext.data.lmdb_source import LmdbImages
from libai_ext.errors import DataError

pytestmark = pytest.mark.usefixtures("bounded")


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
