"""Every kind of root through ``data.train``'s list, alone and together."""

from __future__ import annotations

import numpy as np
import pytest
from image_files import bad_files, encode, pixels
from libai.config import instantiate
from made_sets import write_cifar10, write_cifar100, write_lmdb, write_stl10, write_tar

from libai_ext.config import lazy_config
from libai_ext.data.concat import Concat
from libai_ext.data.sampler import SampleKey
from libai_ext.data.sources import open_source
from libai_ext.errors import DataError
from projects.MAE.run import resolve


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def roots(tmp_path):
    """One root of each kind: 2 + 3 + 2 + 20 + 5 + 3 + 4 + 2 images."""
    for name, seed in (("cat", 0), ("dog", 1)):
        (tmp_path / "folder" / name).mkdir(parents=True)
        (tmp_path / f"folder/{name}/1.png").write_bytes(encode(pixels(seed)))
    write_lmdb(tmp_path / "lmdb", [encode(pixels(seed)) for seed in (2, 3, 4)])
    for number in (0, 1):
        rows = [("1.cls", b"%d" % number), ("1.png", encode(pixels(5 + number)))]
        write_tar(tmp_path / f"shard-{number}.tar", rows)
    write_cifar10(tmp_path)
    write_cifar100(tmp_path)
    write_stl10(tmp_path)
    (tmp_path / "flat").mkdir()
    for number in (0, 1):
        (tmp_path / f"flat/{number}.png").write_bytes(encode(pixels(number)))
    (tmp_path / "list.txt").write_text("0.png dog\n1.png cat\n")
    return [
        f"{tmp_path}/folder",
        f"{tmp_path}/lmdb",
        f"{tmp_path}/shard-{{0..1}}.tar",
        f"cifar10:train:{tmp_path}",
        f"cifar100:test:{tmp_path}",
        f"stl10:train:{tmp_path}",
        f"stl10:unlabeled:{tmp_path}",
        f"labels:{tmp_path}/list.txt:{tmp_path}/flat",
    ]


COUNTS = [2, 3, 2, 20, 5, 3, 4, 2]


def test_each_kind_alone(roots):
    assert [len(open_source(root)) for root in roots] == COUNTS
    assert [len(open_source([root]).classes) for root in roots] == [2, 1, 2, 10, 100, 10, 1, 2]


def test_all_together_in_their_order(roots):
    source = open_source(roots)
    assert len(source) == sum(COUNTS)
    for index in range(7):
        np.testing.assert_array_equal(source[index][0], pixels(index))
    start = 0
    for root, count in zip(roots, COUNTS):
        part = open_source(root)
        for index in (0, count - 1):
            image, label = source[start + index]
            expected, own = part[index]
            np.testing.assert_array_equal(image, expected)
            assert source.classes[label] == part.classes[own]
            assert source.labels[start + index] == label and part.labels[index] == own
        start += count
    assert source.classes == sorted(set(source.classes))
    with pytest.raises(IndexError):
        Concat(source.source.parts)[start]


def test_equal_classes_stay_as_they_are(roots, tmp_path):
    """CIFAR-10's train and test splits, and a list of classes that is not sorted."""
    source = open_source([f"cifar10:{split}:{tmp_path}" for split in ("train", "test")])
    assert (len(source), source.classes[:2]) == (24, ["airplane", "automobile"])
    assert source[20][1] == 0

    class Part(list):
        classes = ["b", "a"]

    both = Concat([Part([("x", 0)]), Part([("y", 1)])])
    assert (both.classes, both[0], both[1]) == (["b", "a"], ("x", 0), ("y", 1))


def test_options_reach_every_reader(roots):
    grey = open_source(roots, mode="L")
    assert {grey[index][0].mode for index in range(len(grey))} == {"L"}
    small = open_source(roots[:3], max_pixels=100)
    with pytest.raises(DataError, match="no readable image"):
        small[0]


def test_bad_images_of_each_reader_are_skipped(tmp_path):
    good, bad = encode(pixels(1)), bad_files()["truncated png"]
    (tmp_path / "folder").mkdir()
    for name, data in (("1", bad), ("2", good)):
        (tmp_path / f"folder/{name}.png").write_bytes(data)
    write_lmdb(tmp_path / "lmdb", [bad, good])
    write_tar(tmp_path / "x.tar", [("1.png", bad), ("2.png", good)])
    source = open_source([f"{tmp_path}/{name}" for name in ("folder", "lmdb", "x.tar")])
    for index in range(6):
        np.testing.assert_array_equal(source[index][0], pixels(1))
    assert (source.drawn, source.bad) == (6, 3)


@pytest.mark.parametrize(
    "roots, message",
    [
        ([], "set data.train"),
        (["cifar10:/data"], "cifar10:/data: expected cifar10:SPLIT:FOLDER"),
        (["stl10"], "stl10: expected stl10:SPLIT:FOLDER"),
        (["cifar100:val:/data"], r"Cifar100 has the splits \['train', 'test'\]"),
        (["/nowhere"], "data folder /nowhere does not exist"),
        (["/nowhere/{0..2}.tar"], "shard /nowhere/0.tar: No such file"),
    ],
)
def test_unusable_roots(roots, message):
    with pytest.raises(DataError, match=message):
        open_source(roots)


def test_the_key_data_train_takes_each(roots):
    """As written on a command line, for the recipe's own data set node."""
    for root, count in zip(roots, COUNTS):
        quoted = f"data.train=['{root}']"
        cfg = resolve("projects/MAE/configs/mae_pretraining.py", [quoted, "model.img_size=32"])
        dataset = instantiate(lazy_config.fresh(cfg.dataloader.train.dataset))
        assert len(dataset) == count
        sample = dataset[SampleKey(0, count - 1)]
        assert (sample["images"].shape, sample["noise"].shape) == ((3, 32, 32), (4,))
