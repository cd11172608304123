"""STL-10, binary version: uint8 images of 96 x 96; each channel is stored column by column."""

from __future__ import annotations

import os
from typing import Iterator

import numpy as np
from PIL import Image

from libai_ext.data.decode import Decoder
from libai_ext.data.download import Archive, provide
from libai_ext.data.fingerprint import of_labels
from libai_ext.errors import DataError

_SHAPE = (3, 96, 96)
_BYTES_PER_IMAGE = 3 * 96 * 96


class Stl10:
    """5,000 + 8,000 images of 10 classes, and 100,000 unlabelled ones, of one class.

    The pixels are a memory map, so that the 2.8 GB of the unlabelled split are read as needed and
    shared by all processes.

    Args:
        root: the folder that holds (or gets) ``stl10_binary``.
        split: ``"train"``, ``"test"`` or ``"unlabeled"``.
        download: fetch the archive where its files are missing.
        mode: Pillow mode of the images, as of :class:`Decoder`.

    Raises:
        DataError: files are missing or of another size than expected; unknown split.
    """

    archive = Archive(
        url="http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
        md5="91f7769df0f17e558f3565bffb0c7dfb",
        folder="stl10_binary",
        files=(
            *("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin"),
            *("unlabeled_X.bin", "class_names.txt"),
        ),
    )
    splits = ("train", "test", "unlabeled")

    def __init__(self, root: str, split: str, download: bool = False, mode: str = "RGB"):
        if split not in self.splits:
            raise DataError(f"Stl10 has the splits {list(self.splits)}: {split!r}?")
        self.root = root
        self.folder = provide(self.archive, root, download)
        self.split = split
        self.mode = str(Decoder(mode).mode)
        path = self.folder / f"{split}_X.bin"
        count, rest = divmod(os.path.getsize(path), _BYTES_PER_IMAGE)
        if rest or not count:
            raise DataError(f"{path} is no whole number of images of 96 x 96: unpack it again")
        self.pixels = np.memmap(path, np.uint8, mode="r", shape=(count, *_SHAPE))
        self.classes, self.labels = [""], np.zeros(count, np.uint8)
        if split != "unlabeled":
            self._read_labels()

    def __reduce__(self):
        # A memory map would be pickled as its pixels.
        return type(self), (self.root, self.split, False, self.mode)

    def identity(self) -> Iterator[bytes]:
        """See :mod:`libai_ext.data.fingerprint`."""
        yield from of_labels(self)
        yield b"%d" % self.pixels.size

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        # Columns are the slow axis of the file: [C, W, H] to [H, W, C].
        pixels = np.ascontiguousarray(self.pixels[index].transpose(2, 1, 0))
        return Image.fromarray(pixels).convert(self.mode), int(self.labels[index])

    def _read_labels(self) -> None:
        try:
            names = (self.folder / "class_names.txt").read_text(encoding="utf-8").split()
        except UnicodeDecodeError as error:
            raise DataError(f"{self.folder}/class_names.txt is no text in UTF-8: {error}") from None
        path = self.folder / f"{self.split}_y.bin"
        labels = np.fromfile(path, np.uint8)
        if len(labels) != len(self.labels) or not 1 <= labels.min() <= labels.max() <= len(names):
            raise DataError(f"{path} does not hold a label from 1 to {len(names)} for each image")
        self.classes, self.labels = names, labels - np.uint8(1)
