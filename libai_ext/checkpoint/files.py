"""Opening files as memory maps, and replacing files and folders atomically."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import tempfile
from contextlib import contextmanager
from typing import Iterator

from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.files.regular import open_regular


def map_file(path: str | os.PathLike[str]) -> mmap.mmap:
    """Map a regular file for reading; the map lives as long as an array that views it.

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


def sync(path: str | os.PathLike[str]) -> None:
    """Force a file's content, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(path: str | os.PathLike[str]) -> None:
    """Force a folder and all that is in it to disk."""
    for folder, _, names in os.walk(path):
        for name in names:
            sync(os.path.join(folder, name))
        sync(folder)


def replace_folder(source: str, target: str) -> None:
    """Move the folder ``source`` to ``target`` and remove what was there.

    Linux exchanges the two at once, so that there is always a whole ``target``. Where the file
    system cannot (NFS), the former one is ``target.old`` for the moment between two renames.

    Raises:
        OSError: the disk refuses.
    """
    former = f"{target}.old"
    if not os.path.exists(target):
        os.rename(source, target)
    elif _exchange(source, target):
        former = source
    else:
        shutil.rmtree(former, ignore_errors=True)
        os.rename(target, former)
        os.rename(source, target)
    sync(os.path.dirname(os.path.abspath(target)))
    shutil.rmtree(former, ignore_errors=True)


def _exchange(first: str, second: str) -> bool:
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:  # glibc before 2.28
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[str]:
    """Give the name of a temporary file that becomes `path` when the block has succeeded.

    A crash or an error leaves what was at `path` before as it was.

    Raises:
        CheckpointError: the file cannot be written.
    """
    path = os.path.abspath(path)
    folder = os.path.dirname(path)
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=os.path.basename(path) + ".", dir=folder)
        os.close(descriptor)
        yield temporary
        # What mkstemp and some libraries create, only its owner may read.
        os.chmod(temporary, 0o666 & ~_umask())
        sync(temporary)
        os.replace(temporary, path)
        sync(folder)
    except BaseException as error:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise CheckpointError(f"{path}: cannot be written: {error.strerror}") from None
        raise


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[str]:
    """Give the name of a temporary folder that becomes `path` when the block has succeeded.

    Raises:
        CheckpointError: the folder cannot be written, or `path` exists and is not empty.
    """
    path = os.path.abspath(path)
    parent = os.path.dirname(path)
    temporary = ""
    try:
        temporary = tempfile.mkdtemp(prefix=os.path.basename(path) + ".", dir=parent)
        yield temporary
        os.chmod(temporary, 0o777 & ~_umask())
        sync_tree(temporary)
        os.rename(temporary, path)  # replaces an empty folder, refuses any other
        sync(parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise CheckpointError(f"{path}: cannot be written: {error.strerror}") from None
        raise
