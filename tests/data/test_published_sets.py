"""CIFAR and STL-10 on files in their format."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
from made_sets import (
    CIFAR10_NAMES,
    cifar_pixels,
    python2_pickle,
    python3_pickle,
    write_cifar10,
    write_cifar100,
    write_stl10,
)

from libai_ext.data.cifar import Cifar10, Cifar100
from libai_ext.data.stl10 import Stl10
from libai_ext.errors import DataError


def image_of(row):
    """From the format's description: 1024 red values row by row, then green, then blue."""
    return np.stack([row[c * 1024 : (c + 1) * 1024].reshape(32, 32) for c in range(3)], -1)


@pytest.mark.parametrize("dump", [python2_pickle, python3_pickle])
def test_cifar10(tmp_path, dump):
    write_cifar10(tmp_path, dump)
    train, test = Cifar10(tmp_path, "train"), Cifar10(tmp_path, "test")
    assert (len(train), len(test), train.classes) == (20, 4, CIFAR10_NAMES)
    assert [train[i][1] for i in range(20)] == [(i % 4 + 1 + i // 4) % 10 for i in range(20)]
    assert [test[i][1] for i in range(4)] == [0, 1, 2, 3]
    for index in (0, 7, 19):
        expected = image_of(cifar_pixels(1 + index // 4, 4)[index % 4])
        np.testing.assert_array_equal(train[index][0], expected)
    np.testing.assert_array_equal(test[0][0], image_of(cifar_pixels(0, 4)[0]))
    assert (train[0][0].mode, Cifar10(tmp_path, "test", mode="L")[0][0].mode) == ("RGB", "L")
    assert type(train[0][1]) is int


@pytest.mark.parametrize("dump", [python2_pickle, python3_pickle])
def test_cifar100_has_the_fine_labels(tmp_path, dump):
    write_cifar100(tmp_path, dump)
    train, test = Cifar100(tmp_path, "train"), Cifar100(tmp_path, "test")
    assert (len(train), len(train.classes), train.classes[19]) == (5, 100, "fine19")
    assert [train[i][1] for i in range(5)] == [0, 19, 38, 57, 76]
    np.testing.assert_array_equal(train[4][0], image_of(cifar_pixels(11, 5)[4]))
    np.testing.assert_array_equal(test[0][0], image_of(cifar_pixels(10, 5)[0]))


def test_stl10(tmp_path):
    images = write_stl10(tmp_path)
    for split, labels in (("train", [0, 2, 4]), ("test", [0, 2]), ("unlabeled", [0] * 4)):
        source = Stl10(tmp_path, split)
        assert [source[i][1] for i in range(len(source))] == labels
        for index, expected in enumerate(images[split]):
            np.testing.assert_array_equal(source[index][0], expected)
    assert Stl10(tmp_path, "train").classes[2] == "car"
    assert Stl10(tmp_path, "unlabeled").classes == [""]
    assert Stl10(tmp_path, "train", mode="L")[0][0].mode == "L"


@pytest.mark.parametrize("name", ["Cifar10", "Stl10"])
def test_other_processes_read_the_files_themselves(tmp_path, name):
    write_cifar10(tmp_path)
    write_stl10(tmp_path)
    source = {"Cifar10": Cifar10, "Stl10": Stl10}[name](tmp_path, "train")
    sent = pickle.dumps(source)
    assert len(sent) < 500
    np.testing.assert_array_equal(pickle.loads(sent)[2][0], source[2][0])


def test_without_the_files(tmp_path):
    with pytest.raises(DataError, match="set data.download=true to fetch https://www.cs.toronto"):
        Cifar100(tmp_path, "train")
    with pytest.raises(DataError, match="stl10_binary does not hold train_X.bin.*or unpack"):
        Stl10(tmp_path, "train")
    assert list(tmp_path.iterdir()) == []


def test_unknown_splits(tmp_path):
    with pytest.raises(DataError, match=r"Cifar10 has the splits \['train', 'test'\]: 'val'"):
        Cifar10(tmp_path, "val")
    with pytest.raises(DataError, match="unlabeled.*: 'unlabelled'"):
        Stl10(tmp_path, "unlabelled")


class Bomb:
    """Writes a file when it is unpickled by anyone who lets it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def harmful(trap):
    encoded = b"c_codecs\nencode\n(X\x01\0\0\0aX\x03\0\0\0hextR."
    return {
        "a call": pickle.dumps({"data": Bomb(trap)}),
        "a call of protocol 0": b"cos\nmkdir\n(S'%s'\ntR." % str(trap).encode(),
        "a call of protocol 4": pickle.dumps({"data": Bomb(trap)}, protocol=4),
        "an attribute of NumPy": b"cnumpy\nload\n(S'%s'\ntR." % str(trap).encode(),
        "an instance": b"(cos\nmkdir\nS'%s'\no." % str(trap).encode(),
        "another codec": encoded,
        "an extension": b"\x82\x01.",
        "objects": python3_pickle({"data": np.array([None]), "labels": [0]}),
        "floats": python3_pickle({"data": np.zeros((1, 3072)), "labels": [0]}),
        "too few pixels": python2_pickle({"data": cifar_pixels(0, 2), "labels": [0]}),
        "no labels": python2_pickle({"data": cifar_pixels(0, 1)}),
        "a label out of range": python2_pickle({"data": cifar_pixels(0, 1), "labels": [10]}),
        "a list": pickle.dumps([1]),
        "cut off": python2_pickle({"data": cifar_pixels(0, 1), "labels": [0]})[:-900],
        "empty": b"",
    }


@pytest.mark.parametrize("kind", harmful("x"))
def test_harmful_and_damaged_pickles(tmp_path, kind):
    folder = write_cifar10(tmp_path)
    trap = tmp_path / "trap"
    (folder / "test_batch").write_bytes(harmful(trap)[kind])
    with pytest.raises(DataError, match="test_batch"):
        Cifar10(tmp_path, "test")
    assert not trap.exists()


def test_damaged_stl10(tmp_path):
    write_stl10(tmp_path)
    (tmp_path / "stl10_binary/test_y.bin").write_bytes(b"\x01\x0b")
    with pytest.raises(DataError, match="test_y.bin does not hold a label from 1 to 10"):
        Stl10(tmp_path, "test")
    (tmp_path / "stl10_binary/class_names.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="class_names.txt is no text in UTF-8"):
        Stl10(tmp_path, "test")
    with open(tmp_path / "stl10_binary/train_X.bin", "ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match="train_X.bin is no whole number of images"):
        Stl10(tmp_path, "train")
