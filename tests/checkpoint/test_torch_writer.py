"""Writing `.pth` files: what real PyTorch reads back, alignment, atomicity."""

from __future__ import annotations

import os
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from libai_ext.checkpoint import torch_file, torch_writer
from libai_ext.checkpoint.errors import CheckpointError


@pytest.fixture
def state():
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    return OrderedDict(
        float32=base,
        transposed=base.T,
        sliced=base[::2, 1::2],
        big_endian=np.array([1.5, -2.0], ">f4"),
        float64=np.array([np.pi, -0.0]),
        float16=np.array([0.5, np.inf, 6e-8], np.float16),
        int64=np.array([-(2**62)]),
        int32=np.array([[7]], np.int32),
        int16=np.array([-300], np.int16),
        int8=np.array([-128], np.int8),
        uint8=np.array([255], np.uint8),
        bool=np.array([True, False]),
        scalar=np.array(2.5),
        empty=np.zeros((0, 3), np.float32),
        nan=np.array([0x7FC00001], np.uint32).view(np.float32),
    )


def _same_bits(ours, expected):
    assert list(ours) == list(expected)
    for name, array in expected.items():
        native = np.asarray(array, array.dtype.newbyteorder("="))
        assert ours[name].dtype == native.dtype and ours[name].shape == array.shape, name
        assert ours[name].tobytes() == native.tobytes(), name


def test_round_trip_is_bit_exact(state, tmp_path):
    tree = {"model": state, "epoch": 7, "big": -(2**40), "lr": 0.5, "name": "é", "none": None,
            "flag": True}  # fmt: skip
    torch_writer.save(tree, tmp_path / "state.pth")
    loaded = torch_file.load(tmp_path / "state.pth")
    _same_bits(loaded.pop("model"), tree.pop("model"))
    assert loaded == tree and type(loaded["flag"]) is bool


def test_real_torch_opens_it(state, tmp_path, oracle):
    del state["big_endian"]  # np.savez keeps the byte order, torch has none
    torch_writer.save({"model": state, "epoch": 7, "name": "é"}, tmp_path / "state.pth")
    np.savez(tmp_path / "state.npz", **state)
    rest = oracle("load_plain", tmp_path / "state.pth", tmp_path / "state.npz")
    assert rest == {"epoch": 7, "name": "é"}


def test_contents_are_aligned_and_have_the_records_torch_expects(state, tmp_path):
    torch_writer.save(state, tmp_path / "state.pth")
    content = (tmp_path / "state.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "state.pth") as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        for info in archive.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            lengths = content[info.header_offset + 26 : info.header_offset + 30]
            start = info.header_offset + 30 + sum(np.frombuffer(lengths, "<u2"))
            assert start % 64 == 0, info.filename
        assert archive.read("archive/byteorder") == b"little"
        assert archive.read("archive/version") == b"3\n"
    assert names[0] == "archive/data.pkl"
    assert [name for name in names if "/data/" in name] == [
        f"archive/data/{key}" for key in range(len(state))
    ]


def test_equal_weights_give_equal_bytes(state, tmp_path):
    for name in ("a.pth", "b.pth"):
        torch_writer.save(state, tmp_path / name)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"x": np.array([1j])}, "arrays of complex128"),
        ({"x": np.array(["text"])}, "arrays of <U4"),
        ({"x": object()}, "a object cannot be written"),
        ({3: np.zeros(1)}, "a key is int, not text"),
    ],
)
def test_what_cannot_be_written_leaves_the_old_file(tmp_path, tree, message):
    path = tmp_path / "state.pth"
    path.write_bytes(b"old")
    with pytest.raises(CheckpointError, match=message):
        torch_writer.save(tree, path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["state.pth"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "state.pth"
    path.write_bytes(b"old")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        torch_writer.save({"x": np.zeros(3)}, path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["state.pth"]


def test_a_new_file_has_the_permissions_of_any_other(tmp_path):
    torch_writer.save({"x": np.zeros(3)}, tmp_path / "state.pth")
    (tmp_path / "other").touch()
    assert os.stat(tmp_path / "state.pth").st_mode == os.stat(tmp_path / "other").st_mode


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="none/state.pth: cannot be written: No such file"):
        torch_writer.save({"x": np.zeros(3)}, tmp_path / "none" / "state.pth")
