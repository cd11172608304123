"""Images in an LMDB in the layout of text recognition: ``num-samples``, ``image-%09d`` from 1."""

from __future__ import annotations

import os

import numpy as np
from PIL import Image

from libai_ext.data.decode import BadImage, Decoder
from libai_ext.data.patience import away, patiently
from libai_ext.errors import DataError

try:
    import lmdb
except ImportError:  # an optional package: needed where a root holds a data.mdb
    lmdb = None

DATA_FILE = "data.mdb"

# (process, environment) by folder: LMDB forbids to open one twice in a process, and to use one
# across a fork.
_open: dict = {}


class LmdbImages:
    """All images of one class: ``label-%09d`` holds a line's text, not a class.

    Args:
        root: the folder of the ``data.mdb``.
        mode, decoding: arguments of :class:`Decoder`.

    Raises:
        DataError: it is missing, unreadable, or its ``num-samples`` is missing or too small.
    """

    classes = [""]

    def __init__(self, root: str, mode: str = "RGB", **decoding):
        self.root = os.path.realpath(root)
        self.decode = Decoder(mode, **decoding)
        count = self._get(b"num-samples")
        if count is None or not count.isdigit() or int(count) < 1:
            raise DataError(
                f"{self.root}/{DATA_FILE} has no usable key num-samples (its value: {count!r}); "
                "expected are num-samples and image-000000001, image-000000002 and so on"
            )
        self.count = int(count)
        if self._get(f"image-{self.count + 1:09d}".encode()) is not None:
            raise DataError(
                f"{self.root}/{DATA_FILE}: num-samples is {self.count}, but there is an image-"
                f"{self.count + 1:09d}: images would be missing; set num-samples to their number"
            )

    @property
    def labels(self) -> np.ndarray:
        """int64 [N]: class numbers, all 0."""
        return np.zeros(self.count, np.int64)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """
        Raises:
            BadImage: the key is missing, or its value is no readable image.
        """
        if not 0 <= index < self.count:
            raise IndexError(index)
        key = f"image-{index + 1:09d}"
        name = f"{self.root}:{key}"
        data = self._get(key.encode())
        if data is None:
            raise BadImage(name, "the key is missing")
        return self.decode(data, name), 0

    def _get(self, key: bytes) -> bytes | None:
        with _environment(self.root).begin() as transaction:
            return transaction.get(key)


def _environment(root: str):
    pid, environment = _open.get(root, (None, None))
    if pid == os.getpid():
        return environment
    if lmdb is None:
        raise DataError(f"{root} is an LMDB: install the package lmdb (pip install lmdb)")
    # LMDB's own errors do not say which of them pass.
    patiently(lambda: os.stat(os.path.join(root, DATA_FILE)), root, away)
    if environment is not None:
        environment.close()  # the parent's, seen from this side of a fork
    try:
        # Without locks nothing is written beside the data, and read-only media work. Readahead
        # only costs when samples are drawn in random order.
        environment = lmdb.open(root, readonly=True, lock=False, readahead=False, max_readers=1)
    except lmdb.Error as error:
        raise DataError(f"cannot open the LMDB in {root}: {error}") from error
    _open[root] = (os.getpid(), environment)
    return environment
