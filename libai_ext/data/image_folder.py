"""Images in folders: one class a sub-folder, one or several roots read as one data set."""

from __future__ import annotations

import os
import stat
from typing import Iterator, Sequence

import numpy as np
from PIL import Image

from libai_ext.data.decode import MAX_BYTES, Decoder
from libai_ext.data.fingerprint import of_files, of_labels
from libai_ext.data.patience import away, patiently
from libai_ext.data.walk import EXTENSIONS, Walk, some, warn_once
from libai_ext.errors import DataError
from libai_ext.files.regular import read_regular


class ImageFiles:
    """The base of what reads an image from a file of its own.

    Args:
        samples: (path, class number) of each.
        classes: their names.
        mode, decoding: arguments of :class:`Decoder`.
    """

    def __init__(
        self,
        samples: Sequence[tuple[str, int]],
        classes: Sequence[str],
        mode: str = "RGB",
        **decoding,
    ):
        self.samples = list(samples)
        self.classes = list(classes)
        self.decode = Decoder(mode, **decoding)

    @property
    def labels(self) -> np.ndarray:
        """int64 [N]: class numbers."""
        return np.array([label for _, label in self.samples], np.int64)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """The decoded image and its class number.

        Raises:
            BadImage: the file is no readable image.
            DataError: the file itself cannot be read.
            DataUnavailable: nor can what is around it, for a while.
        """
        path, label = self.samples[index]
        try:
            data = patiently(lambda: read_regular(path, MAX_BYTES), path, away)
        except OSError as error:
            raise DataError(f"cannot open {path}: {error.strerror}") from error
        return self.decode(data, path), label

    def identity(self) -> Iterator[bytes]:
        """See :mod:`libai_ext.data.fingerprint`."""
        yield from of_labels(self)
        yield from of_files([path for path, _ in self.samples])

    def name(self, index: int) -> str:
        """Path of a sample."""
        return self.samples[index][0]


class ImageFolder(ImageFiles):
    """``root/class/**/image``; a root without classes holds images right in it (pre-training).

    What counts as an image and what is passed over: :mod:`libai_ext.data.walk`. Classes are the
    sorted sub-folder names over all roots, samples are sorted by root, class and path: the same
    folder gives the same index on every machine. A sub-folder without images is a class without
    samples, unless the root itself has images: then it is passed over.

    Args:
        roots: folders, read in this order.
        mode, decoding: arguments of :class:`Decoder`.

    Raises:
        DataError: a root is missing, holds no image, or holds images beside sub-folders with
            images: whether those are classes is anybody's guess.
    """

    def __init__(self, roots: Sequence[str], mode: str = "RGB", **decoding):
        self.roots = [str(root) for root in ([roots] if isinstance(roots, str) else roots)]
        if not self.roots:
            raise DataError("no data folder is given: set data.train to a list of folders")
        found = [_scan(root) for root in self.roots]
        classes = sorted({name for images in found for name in images})
        number = {name: i for i, name in enumerate(classes)}
        samples = [
            (path, number[name])
            for images in found
            for name, paths in images.items()
            for path in paths
        ]
        super().__init__(samples, classes, mode, **decoding)


def _scan(root: str) -> dict[str, list[str]]:
    """Paths of the images under a root by class name, both sorted."""
    check_folder(root)
    walk = Walk(root)
    own, folders = walk.entries(walk.root)
    classes = {os.path.basename(folder): walk.images(folder) for folder in folders}
    empty = [name for name, images in classes.items() if not images]
    full = [name for name, images in classes.items() if images]
    if own and full:
        raise DataError(
            f"data folder {root} holds {len(own):,} images ({os.path.basename(own[0])} ...) beside "
            f"sub-folders with images ({some(full)}): move them into the sub-folder of their "
            "class, or take either out of the data"
        )
    if own:
        classes = {"": own}
        for name in empty:
            walk.passed.add("folders without an image", name)
    elif empty and full:
        warn_once(f"data folder {root}: no image of {len(empty)} classes: {some(empty)}")
    if walk.passed:
        warn_once(f"data folder {root}: passed over {walk.passed}")
    if not own and not full:
        raise DataError(
            f"data folder {root} holds no image ({', '.join(EXTENSIONS)}); "
            "expected root/class/image or root/image"
            + (f"; passed over: {walk.passed}" if walk.passed else "")
        )
    return classes


def check_folder(path: str) -> None:
    """
    Raises:
        DataError: there is no folder of this name.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as error:
        raise DataError(f"data folder {path} does not exist (set data.train, data.test)") from error
    except OSError as error:
        raise DataError(f"data folder {path}: {error.strerror}") from error
    if not stat.S_ISDIR(mode):
        raise DataError(
            f"{path} is a file, not a folder: roots of data are folders (that of an LMDB's "
            "data.mdb as well), plain .tar shards, or labels:FILE:FOLDER with a list of labels"
        )
