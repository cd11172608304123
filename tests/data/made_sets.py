"""Small data sets in the published formats, for the tests of their readers."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile

import lmdb
import numpy as np

CIFAR10_NAMES = "airplane automobile bird cat deer dog frog horse ship truck".split()


def python2_pickle(content: dict) -> bytes:
    """What Python 2's cPickle writes for a dict of text, lists and uint8 arrays (protocol 2)."""

    def text(value):
        value = value.encode() if isinstance(value, str) else value
        return b"T" + struct.pack("<I", len(value)) + value

    def number(value):
        return b"J" + struct.pack("<i", value)

    def array(value):
        dtype = b"cnumpy\ndtype\n" + text("u1") + b"K\x00K\x01\x87R"
        dtype += b"(K\x03" + text("|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text("b")
        shape = b"".join(map(number, value.shape)) + b"\x86"
        return made + b"\x87R(K\x01" + shape + dtype + b"\x89" + text(value.tobytes()) + b"tb"

    def any_value(value):
        if isinstance(value, np.ndarray):
            return array(value)
        if isinstance(value, list):
            return b"](" + b"".join(map(any_value, value)) + b"e"
        return number(value) if isinstance(value, int) else text(value)

    items = b"".join(text(key) + any_value(value) for key, value in content.items())
    return b"\x80\x02}(" + items + b"u."


def python3_pickle(content: dict) -> bytes:
    return pickle.dumps(content, protocol=2)


def cifar_pixels(split: int, count: int) -> np.ndarray:
    return np.random.default_rng(split).integers(0, 256, (count, 3072), np.uint8)


def write_cifar10(root, dump=python2_pickle, count=4):
    """``count`` images a batch, label = place in the batch + batch number, modulo 10."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for number in range(6):
        name = f"data_batch_{number}" if number else "test_batch"
        content = {
            "batch_label": f"batch {number}",
            "labels": [(place + number) % 10 for place in range(count)],
            "data": cifar_pixels(number, count),
            "filenames": [f"{place}.png" for place in range(count)],
        }
        (folder / name).write_bytes(dump(content))
    meta = {"num_cases_per_batch": count, "label_names": CIFAR10_NAMES, "num_vis": 3072}
    (folder / "batches.meta").write_bytes(dump(meta))
    return folder


def write_cifar100(root, dump=python2_pickle, count=5):
    """Fine label = 19 x place."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for number, name in enumerate(("test", "train")):
        content = {
            "filenames": [f"{place}.png" for place in range(count)],
            "fine_labels": [19 * place for place in range(count)],
            "coarse_labels": [0] * count,
            "data": cifar_pixels(10 + number, count),
        }
        (folder / name).write_bytes(dump(content))
    names = [f"fine{number:02d}" for number in range(100)]
    (folder / "meta").write_bytes(dump({"fine_label_names": names, "coarse_label_names": ["all"]}))
    return folder


def write_stl10(root, counts=(("train", 3), ("test", 2), ("unlabeled", 4))):
    """Returns the images [N, 96, 96, 3] by split; label = 2 x place."""
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    images = {}
    for number, (split, count) in enumerate(counts):
        images[split] = np.random.default_rng(number).integers(0, 256, (count, 96, 96, 3), np.uint8)
        with open(folder / f"{split}_X.bin", "wb") as file:
            for image in images[split]:
                for channel in range(3):
                    file.write(image[:, :, channel].tobytes(order="F"))  # column by column
        if split != "unlabeled":
            (folder / f"{split}_y.bin").write_bytes(bytes(1 + 2 * i for i in range(count)))
    names = "airplane bird car cat deer dog horse monkey ship truck".split()
    (folder / "class_names.txt").write_text("\n".join(names) + "\n")
    return images


def write_lmdb(folder, files, labels=True):
    folder.mkdir(parents=True)
    environment = lmdb.open(str(folder), map_size=1 << 26)
    with environment.begin(write=True) as transaction:
        for number, data in enumerate(files, 1):
            if data is not None:
                transaction.put(b"image-%09d" % number, data)
            if labels:
                transaction.put(b"label-%09d" % number, b"a word")
        transaction.put(b"num-samples", b"%d" % len(files))
    environment.close()
    return str(folder)


def write_tar(path, members, **keywords):
    """``members``: (name, bytes) in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, keywords.pop("mode", "w"), **keywords) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return str(path)
