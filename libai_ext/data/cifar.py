"""CIFAR-10 and CIFAR-100, the "python version" of their publisher: pickles of uint8 arrays."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from libai_ext.data.decode import Decoder
from libai_ext.data.download import Archive, provide
from libai_ext.errors import DataError

_BYTES_PER_IMAGE = 3 * 32 * 32
_CIFAR_10_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))


class Cifar:
    """The base of both: images of 32 x 32, channels first, in a few pickled batches.

    Args:
        root: the folder that holds (or gets) the folder of the archive.
        split: ``"train"`` or ``"test"``.
        download: fetch the archive where its files are missing.
        mode: Pillow mode of the images, as of :class:`Decoder`.

    Raises:
        DataError: files are missing or are no CIFAR batches; unknown split.
    """

    archive: Archive
    splits: dict
    label_key: str
    meta: tuple

    def __init__(self, root: str, split: str, download: bool = False, mode: str = "RGB"):
        if split not in self.splits:
            raise DataError(f"{type(self).__name__} has the splits {list(self.splits)}: {split!r}?")
        self.root = root
        self.folder = provide(self.archive, root, download)
        self.split = split
        self.mode = Decoder(mode).mode
        file, key = self.meta
        self.classes = [_text(name) for name in _read(self.folder / file, key)[key]]
        self.pixels, self.labels = self._load()

    def __reduce__(self):
        # Another process reads the files again rather than being sent 150 MB.
        return type(self), (self.root, self.split, False, self.mode)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image = Image.fromarray(self.pixels[index].reshape(3, 32, 32).transpose(1, 2, 0))
        return image.convert(self.mode), int(self.labels[index])

    def _load(self):
        """uint8 [N, 3072] and int [N] of the split."""
        parts = []
        for name in self.splits[self.split]:
            path = self.folder / name
            batch = _read(path, "data", self.label_key)
            pixels, labels = batch["data"], np.asarray(batch[self.label_key])
            if not isinstance(pixels, np.ndarray) or pixels.shape != (
                len(labels),
                _BYTES_PER_IMAGE,
            ):
                raise DataError(f"{path} does not hold 32 x 32 images with a label each")
            if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.classes):
                raise DataError(f"{path} has labels outside of 0 .. {len(self.classes) - 1}")
            parts.append((pixels, labels))
        return tuple(np.concatenate(columns) for columns in zip(*parts))


class Cifar10(Cifar):
    """50,000 + 10,000 images of 10 classes."""

    archive = Archive(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
        folder="cifar-10-batches-py",
        files=(*_CIFAR_10_TRAIN, "test_batch", "batches.meta"),
    )
    splits = {"train": _CIFAR_10_TRAIN, "test": ("test_batch",)}
    label_key = "labels"
    meta = ("batches.meta", "label_names")


class Cifar100(Cifar):
    """50,000 + 10,000 images of 100 classes (the fine labels)."""

    archive = Archive(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        folder="cifar-100-python",
        files=("train", "test", "meta"),
    )
    splits = {"train": ("train",), "test": ("test",)}
    label_key = "fine_labels"
    meta = ("meta", "fine_label_names")


def _text(value) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _read(path: Path, *keys: str) -> dict[str, Any]:
    """The named entries of a pickled dictionary.

    Raises:
        DataError: no such pickle, or one that names anything but a NumPy array.
    """
    try:
        with open(path, "rb") as file:
            # Python 2 wrote them: its text is bytes to us.
            content = _ArraysOnly(file, encoding="bytes").load()
        content = {_text(key): value for key, value in content.items()}
        return {key: _plain(content[key]) for key in keys}
    except KeyError as error:
        raise DataError(f"{path} has no entry {error}") from error
    except Exception as error:  # a damaged pickle raises whatever its bytes lead to
        raise DataError(f"{path} is not a batch of CIFAR: {error}") from error


def _plain(value):
    return value.array() if isinstance(value, _Array) else value


class _ArraysOnly(pickle.Unpickler):
    """Builds containers and uint8 arrays. A pickle can name any function to be called: those that
    NumPy arrays need have stand-ins that only take notes, all others are refused."""

    def find_class(self, module: str, name: str):
        stand_in = _STAND_INS.get((module.replace("numpy._core", "numpy.core"), name))
        if stand_in is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which has no place there")
        return stand_in


class _Dtype:
    def __init__(self, code=None, *_):
        self.code = code

    def __setstate__(self, state):
        pass  # byte order and fields: one byte has neither


class _Array:
    """Stands in for numpy.ndarray and for the function that makes one."""

    def __init__(self, *_):
        self.state = None

    def __setstate__(self, state):
        self.state = state

    def array(self) -> np.ndarray:
        _, shape, dtype, fortran, data = self.state
        if not isinstance(dtype, _Dtype) or dtype.code not in ("u1", b"u1"):
            raise ValueError("an array in it is not of type uint8")
        return np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")


def _encode(text, codec):
    """_codecs.encode: how Python 3 spells bytes for Python 2."""
    if _text(codec) != "latin1":
        raise pickle.UnpicklingError("bytes in it are not latin1")
    return text.encode("latin1")


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}
