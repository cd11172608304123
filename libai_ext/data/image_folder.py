"""Images in folders: one class per sub-folder, one or several roots read as one data set."""

from __future__ import annotations

import os
import stat
from typing import Any, Iterator, Sequence

import numpy as np

from libai_ext.data.decode import MAX_BYTES, Decoder
from libai_ext.data.fingerprint import of_files, of_labels
from libai_ext.data.retry import is_unavailable, read_with_retry
from libai_ext.data.walk import Walk, some, warn_once
from libai_ext.errors import DataError
from libai_ext.files.regular import read_regular


class ImageFiles:
    """Base class: each sample is an image file.

    Args:
        samples: (path, class number) of each.
        classes: their names.
        mode, decoding: arguments of :class:`Decoder`.
    """

    def __init__(
        self,
        samples: Sequence[tuple[str, int]],
        classes: Sequence[str],
        mode: str | int = "RGB",
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

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """The decoded image and its class number.

        Raises:
            BadImage: the file is not a readable image.
            DataError: the file cannot be opened.
            DataUnavailable: the disk or server did not come back.
        """
        path, label = self.samples[index]
        try:
            data = read_with_retry(lambda: read_regular(path, MAX_BYTES), path, is_unavailable)
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
    """``root/class/**/image``, or ``root/image`` without classes (pre-training).

    :mod:`libai_ext.data.walk` says which files are images. Classes are the sorted names of the
    sub-folders of all roots. Samples are sorted by root, class and path, so that a folder gives the
    same indices on every machine. A sub-folder without images is a class without samples; it is
    skipped if the root itself has images.

    Args:
        roots: folders, in this order.
        mode, decoding: arguments of :class:`Decoder`.

    Raises:
        DataError: a root is missing, has no image, or has images both directly and in sub-folders,
            which may or may not be classes.
    """

    def __init__(self, roots: Sequence[str], mode: str | int = "RGB", **decoding):
        self.roots = [str(root) for root in ([roots] if isinstance(roots, str) else roots)]
        if not self.roots:
            raise DataError("no data folder is given: set data.train to a list of folders")
        found = [_scan(root, mode) for root in self.roots]
        classes = sorted({name for images in found for name in images})
        number = {name: i for i, name in enumerate(classes)}
        samples = [
            (path, number[name])
            for images in found
            for name, paths in images.items()
            for path in paths
        ]
        super().__init__(samples, classes, mode, **decoding)


def _scan(root: str, mode: str | int) -> dict[str, list[str]]:
    """Sorted paths of the images of a root, by sorted class name."""
    check_folder(root)
    walk = Walk(root, mode)
    own, folders = walk.entries(walk.root)
    classes = {os.path.basename(folder): walk.images(folder) for folder in folders}
    empty = [name for name, images in classes.items() if not images]
    full = [name for name, images in classes.items() if images]
    if own and full:
        raise DataError(
            f"data folder {root} holds {len(own):,} images ({os.path.basename(own[0])} ...) beside "
            f"sub-folders with images ({some(full)}): move them into the sub-folder of their "
            "class, or remove either"
        )
    if own:
        classes = {"": own}
        for name in empty:
            walk.skipped.add("folders without an image", name)
    elif empty and full:
        warn_once(f"data folder {root}: no image of {len(empty)} classes: {some(empty)}")
    if walk.skipped:
        warn_once(f"data folder {root}: skipped {walk.skipped}")
    if not own and not full:
        raise DataError(
            f"data folder {root} holds no image ({', '.join(walk.extensions)}); "
            "expected root/class/image or root/image"
            + (f"; skipped: {walk.skipped}" if walk.skipped else "")
        )
    return classes


def check_folder(path: str) -> None:
    """
    Raises:
        DataError: there is no such folder.
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
