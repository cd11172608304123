"""Opening files as memory maps, and replacing files atomically."""

from __future__ import annotations

import mmap
import os
import stat
import tempfile
from contextlib import contextmanager
from typing import BinaryIO, Iterator

from libai_ext.checkpoint.errors import CheckpointError


def map_file(path: str) -> mmap.mmap:
    """Map a regular file for reading; the map lives as long as an array that views it.

    Raises:
        CheckpointError: the file is missing, empty, unreadable or not a regular file.
    """
    try:
        # Without O_NONBLOCK, opening a named pipe waits for a writer that may never come.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path}: not a regular file")
        if status.st_size == 0:
            raise CheckpointError(f"{path}: the file is empty")
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(descriptor)


def sync_directory(path: str) -> None:
    """Make renames inside the directory `path` survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_write(path: str) -> Iterator[BinaryIO]:
    """Open a new file that takes the name `path` only when it is complete and on disk.

    Until then, and after any error, what was at `path` before stays as it was.
    """
    folder = os.path.dirname(os.path.abspath(path))
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=os.path.basename(path) + ".", dir=folder)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot write: {error.strerror}") from None
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's 0600 would hide the file from the group
        os.replace(temporary, path)
        sync_directory(folder)
    except BaseException as error:
        os.unlink(temporary)
        if isinstance(error, OSError):
            raise CheckpointError(f"{path}: cannot write: {error.strerror}") from None
        raise
