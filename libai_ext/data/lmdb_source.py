"""Images in an LMDB with text recognition's keys: ``num-samples``, ``image-%09d`` from 1."""

from __future__ import annotations

import os
from typing import Iterator

import numpy as np
from PIL import Image

from libai_ext.data.decode import MAX_BYTES, BadImage, Decoder
from libai_ext.data.fingerprint import of_labels
from libai_ext.data.lmdb_file import LmdbError, LmdbFile
from libai_ext.data.retry import is_unavailable, read_with_retry
from libai_ext.errors import DataError

DATA_FILE = "data.mdb"
_MAX_DIGITS = 12  # of num-samples


class LmdbImages:
    """Images of a single class: ``label-%09d`` holds a line's text, not a class.

    Args:
        root: the folder of the ``data.mdb``.
        mode, decoding: arguments of :class:`Decoder`.

    Raises:
        DataError: it is missing, unreadable or truncated, or its ``num-samples`` is missing or
            wrong.
    """

    classes = [""]

    def __init__(self, root: str, mode: str | int = "RGB", **decoding):
        self.root = os.path.realpath(root)
        self.decode = Decoder(mode, **decoding)
        self.path = f"{self.root}/{DATA_FILE}"
        try:
            self._file: LmdbFile | None = LmdbFile(self.path)
            self.count = self._count(self._file)
        except LmdbError as error:
            raise DataError(f"cannot read the LMDB {self.path}: {error}") from error
        except OSError as error:
            raise DataError(f"cannot read the LMDB {self.path}: {error.strerror}") from error

    def _count(self, file: LmdbFile) -> int:
        count = file.get(b"num-samples", MAX_BYTES)
        if count is None or not count.isdigit() or len(count) > _MAX_DIGITS or int(count) < 1:
            raise DataError(
                f"{self.path} has no usable key num-samples (its value: {count!r:.40}); "
                "expected: num-samples and image-000000001, image-000000002 and so on"
            )
        # A sample takes more than 16 bytes.
        if int(count) > file.size() // 16:
            raise DataError(
                f"{self.path}: num-samples is {int(count)}, more than its bytes can hold"
            )
        following = f"image-{int(count) + 1:09d}"
        if file.get(following.encode(), MAX_BYTES) is not None:
            raise DataError(
                f"{self.path}: num-samples is {int(count)}, but there is an {following}: images "
                "would be missing; set num-samples to their number"
            )
        return int(count)

    @property
    def labels(self) -> np.ndarray:
        """int64 [N]: class numbers, all 0."""
        return np.zeros(self.count, np.int64)

    def identity(self) -> Iterator[bytes]:
        """See :mod:`libai_ext.data.fingerprint`."""
        yield from of_labels(self)
        yield b"%d" % os.path.getsize(self.path)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """
        Raises:
            BadImage: the key is missing, its page is damaged, or its value is not an image.
            DataError: the file cannot be read.
        """
        if not 0 <= index < self.count:
            raise IndexError(index)
        key = f"image-{index + 1:09d}"
        name = f"{self.root}:{key}"
        try:
            data = read_with_retry(lambda: self._get(key), self.path, is_unavailable)
        except LmdbError as error:
            raise BadImage(name, f"the LMDB is damaged: {error}") from error
        except OSError as error:
            raise DataError(f"cannot read {self.path}: {error.strerror}") from error
        if data is None:
            raise BadImage(name, "the key is missing")
        return self.decode(data, name), 0

    def _get(self, key: str) -> bytes | None:
        if self._file is None:
            self._file = LmdbFile(self.path)
        try:
            return self._file.get(key.encode(), MAX_BYTES)
        except OSError:
            self._file = None  # a stale file does not recover
            raise
