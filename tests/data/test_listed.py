"""ImageNet's flat validation folder and its like, by the lists that go round."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from image_files import encode, pixels

from libai_ext.data.sources import open_source
from libai_ext.errors import DataError

NAMES = [f"ILSVRC2012_val_0000000{n}" for n in (1, 2, 3)]
WNIDS = ["n01751748", "n09193705", "n01751748"]


@pytest.fixture
def val(tmp_path):
    (tmp_path / "val").mkdir()
    for seed, name in enumerate(NAMES):
        (tmp_path / f"val/{name}.JPEG").write_bytes(encode(pixels(seed)))
    return tmp_path


def open_list(folder, text, below="val"):
    (folder / "list.txt").write_text(text)
    return open_source([f"labels:{folder}/list.txt:{folder}/{below}"])


@pytest.mark.parametrize(
    "line, head",
    [
        ("{}.JPEG {}", ""),
        ("{}.JPEG\t{}", ""),
        ("./{}.JPEG {}", ""),
        ("{}.JPEG,{}", "image,label\n"),
        ('"{}.JPEG", "{}"', ""),
        ("{},{} 85 1 499 272", "ImageId,PredictionString\n"),
        ("{}.JPEG,{},extra", "filename,class,split\n"),
        ("{} {}\n", "\ufeff"),
    ],
)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_lists(val, line, head, order):
    lines = [line.format(NAMES[n], WNIDS[n]) for n in order]
    source = open_list(val, head + "\n".join(lines) + "\n")
    assert (len(source), source.classes) == (3, ["n01751748", "n09193705"])
    for index, n in enumerate(order):
        image, label = source[index]
        np.testing.assert_array_equal(image, pixels(n))
        assert source.classes[label] == WNIDS[n]
        assert source.name(index) == f"{val}/val/{NAMES[n]}.JPEG"
    assert source.labels.tolist() == [0 if n != 1 else 1 for n in order]


def test_numbers_are_class_numbers(val):
    """As in caffe's val.txt: 10 is the eleventh class, not the second of a sorted list."""
    source = open_list(val, "".join(f"{n}.JPEG {i}\n" for n, i in zip(NAMES, (2, 10, 0))))
    assert source.classes == [str(n) for n in range(11)]
    assert source.labels.tolist() == [2, 10, 0]
    padded = open_list(val, "".join(f"{n}.JPEG {i}\n" for n, i in zip(NAMES, ("02", "10", "00"))))
    assert padded.classes == ["00", "02", "10"]


def test_names_with_spaces_and_folders(tmp_path):
    for n, name in enumerate(("a b/c d.png", "e.png")):
        (tmp_path / "val" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "val" / name).write_bytes(encode(pixels(n)))
    assert open_list(tmp_path, "a b/c d.png cat\ne.png dog").labels.tolist() == [0, 1]
    source = open_list(tmp_path, "a b/c d.png,guinea pig\ne.png,cat")
    assert source.classes == ["cat", "guinea pig"]


def test_images_that_are_not_listed_are_counted(val, caplog):
    with caplog.at_level(logging.WARNING):
        assert len(open_list(val, f"{NAMES[1]}.JPEG n1")) == 1
    assert f"skipped 2 images that are not listed (in {val}/list.txt 2)" in caplog.text


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "list.txt is empty"),
        ("490\n361\n171\n", "line 1: '490' is not an image and its class, as 'ILSVRC2012_val_"),
        (f"{NAMES[0]}.JPEG n1\n{NAMES[1]}.JPEG", "line 2: .* is not an image and its class"),
        (
            "gone.JPEG n1\nILSVRC2012_val_00000001.JPEG n2",
            "lists 1 images that are not in .*: gone",
        ),
        # No head: what looks like one names a class of the others.
        ("gone,n1\nILSVRC2012_val_00000001,n1", "lists 1 images that are not in .*: gone"),
        (f"{NAMES[0]} n1\n{NAMES[0]}.JPEG n2", "lists 1 images more than once: .*00001.JPEG"),
    ],
)
def test_lists_that_would_lose_images(val, text, message):
    with pytest.raises(DataError, match=message):
        open_list(val, text)


def test_unusable_roots(val):
    (val / "image.txt").write_bytes(encode(pixels()))
    for root, message in (
        ("labels:/gone.txt:/data", "list of labels /gone.txt: No such file"),
        (f"labels:{val}/image.txt:{val}/val", "image.txt is not UTF-8 text"),
        (f"labels:{val}/list.txt", "expected labels:FILE:FOLDER, as labels:val.txt:data/val"),
        (f"labels:{val}:{val}/val", "list of labels .*: Is a directory"),
    ):
        with pytest.raises(DataError, match=message):
            open_source(root)
    with pytest.raises(DataError, match="data folder .*/gone does not exist"):
        open_list(val, f"{NAMES[0]} n1", below="gone")


def test_a_stem_that_two_images_share_names_neither(val):
    (val / f"val/{NAMES[0]}.png").write_bytes(encode(pixels()))
    with pytest.raises(DataError, match=f"not in .*: {NAMES[0]}"):
        open_list(val, f"{NAMES[0]},n1\n{NAMES[1]},n1")
