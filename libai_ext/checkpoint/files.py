"""Open files as memory maps; disk errors become `CheckpointError`."""

from __future__ import annotations

import mmap
import os
from contextlib import contextmanager
from typing import Iterator

from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.files.regular import open_regular


def map_file(path: str | os.PathLike[str]) -> mmap.mmap:
    """Map a regular file for reading; the map stays while an array views it.

    Raises:
        CheckpointError: the file is missing, empty, unreadable or not a regular file.
    """
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise CheckpointError(f"{os.fspath(path)}: the file is empty")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{os.fspath(path)}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """
    Raises:
        CheckpointError: the block raised an `OSError`; the message names ``path``.
    """
    try:
        yield
    except OSError as error:
        path = os.path.abspath(path)
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}") from None
