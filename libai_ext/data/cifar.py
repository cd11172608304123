"""CIFAR-10 and CIFAR-100, the "python version" of their publisher: pickles of uint8 arrays."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any, Callable, Iterator

import numpy as np
from PIL import Image

from libai_ext.checkpoint.files import map_file
from libai_ext.checkpoint.pickle_reader import PickleReader
from libai_ext.checkpoint.plain import COPIED_PER_STEP, Placeholder
from libai_ext.data.decode import Decoder
from libai_ext.data.download import Archive, provide
from libai_ext.data.fingerprint import of_labels
from libai_ext.errors import DataError

_BYTES_PER_IMAGE = 3 * 32 * 32
# The largest batch, CIFAR-100's training data, takes half of it.
_MAX_STEPS = 500_000
# Arguments of numpy.dtype for it, as Python 2 and 3 write them.
_UINT8 = (("u1", 0, 1), (b"u1", 0, 1))
_CIFAR_10_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))


class Cifar:
    """The base of both: images of 32 x 32, channels first, in a few pickled batches.

    Args:
        root: the folder that holds (or gets) the folder of the archive.
        split: ``"train"`` or ``"test"``.
        download: fetch the archive where its files are missing.
        mode: Pillow mode of the images, as of :class:`Decoder`.

    Raises:
        DataError: files are missing or are not CIFAR batches; unknown split.
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
        self.mode = str(Decoder(mode).mode)
        file, key = self.meta
        self.classes = _read(self.folder / file, **{key: _names})[key]
        self.pixels, self.labels = self._load()

    def __reduce__(self):
        # Another process reads the files again: pickled pixels would be 150 MB.
        return type(self), (self.root, self.split, False, self.mode)

    def identity(self) -> Iterator[bytes]:
        """See :mod:`libai_ext.data.fingerprint`."""
        yield from of_labels(self)
        yield b"%d" % zlib.crc32(self.pixels)

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
            batch = _read(path, data=_pixels, **{self.label_key: _numbers})
            pixels, labels = batch["data"], batch[self.label_key]
            if pixels.shape != (len(labels), _BYTES_PER_IMAGE):
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


def _text(value: Any) -> str:
    if type(value) is bytes:
        return value.decode("utf-8")
    if type(value) is not str:
        raise ValueError("a name in it is no text")
    return value


def _read(path: Path, **entries: Callable[[Any], Any]) -> dict[str, Any]:
    """The named entries of a pickled dictionary, each converted by its function.

    Raises:
        DataError: it is not such a pickle, or takes more work than a batch of CIFAR.
    """
    try:
        data = map_file(path)
        steps = _MAX_STEPS + 2 * len(data) // COPIED_PER_STEP
        content = PickleReader(data, steps=steps, python2_bytes=True).load()
        if type(content) is not dict:
            raise ValueError("it is no dictionary")
        content = {_text(key): value for key, value in content.items()}
        return {key: convert(content[key]) for key, convert in entries.items()}
    except KeyError as error:
        raise DataError(f"{path} has no entry {error}") from error
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{path} is not a batch of CIFAR: {error}") from error


def _names(value: Any) -> list[str]:
    if type(value) is not list:
        raise ValueError("its names are no list")
    return [_text(name) for name in value]


def _numbers(value: Any) -> np.ndarray:
    if type(value) is not list or not all(type(number) is int for number in value):
        raise ValueError("its labels are no list of numbers")
    return np.array(value, np.int64)


def _pixels(value: Any) -> np.ndarray:
    """The uint8 array that a pickle describes."""
    if type(value) is not Placeholder or type(value.state) is not tuple or len(value.state) != 5:
        raise ValueError("its pixels are no array")
    _, shape, dtype, fortran, data = value.state
    described = (value.module.replace("_core", "core"), value.name)
    if described != ("numpy.core.multiarray", "_reconstruct"):
        raise ValueError(f"it names {value.module:.80}.{value.name:.80}, which has no place there")
    if type(dtype) is not Placeholder or dtype.args not in _UINT8 or dtype.name != "dtype":
        raise ValueError("an array in it is not of type uint8")
    return np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")
