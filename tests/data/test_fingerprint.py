"""A resumed run says so where its data is other data of the same number of samples."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from image_files import encode, pixels
from made_sets import write_cifar10, write_lmdb, write_stl10, write_tar

from libai_ext.data.fingerprint import fingerprint
from libai_ext.data.sources import open_source
from libai_ext.engine import resume_check

NAMES = ("a/1.png", "a/2.png", "b/3.png", "b/4.png")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def folder(root, names=NAMES, seed=0):
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(pixels(seed + number)))
    return root


def of(*roots):
    return fingerprint(open_source([str(root) for root in roots]))


def test_a_folder(tmp_path):
    first = of(folder(tmp_path / "here"))
    assert len(first) == 12 and int(first, 16) >= 0
    assert of(folder(tmp_path / "elsewhere/too")) == first
    shutil.copytree(tmp_path / "here", tmp_path / "copy")
    assert of(tmp_path / "copy") == first
    changes = {
        "named": lambda root: (root / "a/1.png").rename(root / "a/0.png"),
        "in another class": lambda root: (root / "a/2.png").rename(root / "b/2.png"),
        "class named": lambda root: (root / "a").rename(root / "aa"),
        "larger": lambda root: (root / "b/4.png").write_bytes(bytes(9)),
    }
    seen = {first}
    for name, change in changes.items():
        change(folder(tmp_path / name))
        seen.add(of(tmp_path / name))
    assert len(seen) == 1 + len(changes)


def test_sizes_of_some_files_of_many(tmp_path):
    """Ends included; a missing one is left to whoever reads it."""
    root = folder(tmp_path / "a", [f"c/{number:04d}.png" for number in range(500)])
    source = open_source([str(root)])
    first = fingerprint(source)
    os.unlink(root / "c/0499.png")
    assert fingerprint(source) != first


def test_other_kinds(tmp_path):
    rows = [(name.replace("/", ""), encode(pixels(0))) for name in NAMES]
    listed = folder(tmp_path / "listed")
    lists = []
    for name, classes in (("x.txt", "0011"), ("y.txt", "0101")):
        lines = [f"{file} {number}" for file, number in zip(NAMES, classes)]
        (tmp_path / name).write_text("\n".join(lines))
        lists.append(f"labels:{tmp_path / name}:{listed}")
    for split in ("ten", "also ten"):
        write_cifar10(tmp_path / split)
    write_cifar10(tmp_path / "five", count=5)
    write_stl10(tmp_path / "stl")
    roots = [
        *lists,
        write_tar(tmp_path / "x.tar", rows),
        write_tar(tmp_path / "y.tar", rows[::-1]),
        write_tar(tmp_path / "z.tar", [(name, data + b"0") for name, data in rows]),
        write_lmdb(tmp_path / "lmdb", [data for _, data in rows]),
        write_lmdb(tmp_path / "other", [data * 9 for _, data in rows]),
        *(f"cifar10:{split}:{tmp_path / name}" for split in ("train", "test") for name in ("ten",)),
        *(f"cifar10:test:{tmp_path / 'five'}", f"stl10:train:{tmp_path / 'stl'}"),
    ]
    found = [of(root) for root in roots]
    assert len(set(found)) == len(roots)
    assert of(f"cifar10:test:{tmp_path / 'also ten'}") == of(f"cifar10:test:{tmp_path / 'ten'}")
    assert of(roots[2], roots[4]) not in (of(roots[4], roots[2]), found[2])
    assert fingerprint(np.zeros(3)) is None


def test_a_resumed_run_warns(tmp_path, caplog):
    former, latter = ({"training data": number * 12, "model.depth": 4} for number in "12")
    resume_check.check(former, dict(former), "run/model_final")
    resume_check.check({"model.depth": 4}, latter, "run/model_final")  # of an earlier version
    resume_check.check(former, {**latter, "training data": None}, "run/model_final")
    assert caplog.messages == []
    resume_check.check(former, latter, "run/model_final")
    assert "the training data differ from those of run/model_final: as many samples" in caplog.text
