"""Images in folders: one class a sub-folder, one or several roots read as one data set."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Sequence

from PIL import Image

from libai_ext.data.decode import Decoder
from libai_ext.errors import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")


class ImageFolder:
    """``root/class/**/image``; a root without sub-folders is one class (pre-training).

    Classes are the sorted sub-folder names over all roots, samples are sorted by root, class and
    path: the same folder gives the same index on every machine.

    Args:
        roots: folders, read in this order.
        mode, decoding: arguments of :class:`Decoder`.

    Raises:
        DataError: a root is missing, or holds no image.
    """

    def __init__(self, roots: Sequence[str], mode: str = "RGB", **decoding):
        self.roots = [str(root) for root in ([roots] if isinstance(roots, str) else roots)]
        self.decode = Decoder(mode, **decoding)
        if not self.roots:
            raise DataError("no data folder is given: set data.train to a list of folders")
        found: list[tuple[str, str]] = []
        for root in self.roots:
            found += _scan(root)
        self.classes = sorted({name for name, _ in found})
        number = {name: i for i, name in enumerate(self.classes)}
        self.samples = [(path, number[name]) for name, path in found]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """The decoded image and its class number.

        Raises:
            BadImage: the file is no readable image.
            DataError: the file itself cannot be read.
        """
        path, label = self.samples[index]
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise DataError(f"cannot open {path}: {error.strerror}") from error
        return self.decode(data, path), label

    def name(self, index: int) -> str:
        """Path of a sample."""
        return self.samples[index][0]


def _scan(root: str) -> list[tuple[str, str]]:
    """(class name, path) of each image under a root, sorted."""
    if not Path(root).is_dir():
        raise DataError(f"data folder {root} does not exist (set data.train, data.test)")
    folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    found = []
    for name in folders or [""]:
        for folder, inner, files in os.walk(os.path.join(root, name), followlinks=True):
            inner.sort()
            found += [
                (name, os.path.join(folder, file))
                for file in sorted(files)
                if file.lower().endswith(EXTENSIONS)
            ]
    if not found:
        raise DataError(
            f"data folder {root} holds no image ({', '.join(EXTENSIONS)}); "
            "expected root/class/image or root/image"
        )
    return found
