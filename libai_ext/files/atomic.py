"""Files and folders that appear whole or not at all, also after a crash or a loss of power."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from contextlib import contextmanager
from typing import Iterator

# To read it sets it, for all threads: once, before there are others.
_UMASK = os.umask(0)
os.umask(_UMASK)


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


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write or replace a small file. One process at a time: ``path.new`` is where it is written,
    and all that a crash leaves."""
    temporary = f"{os.fspath(path)}.new"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
    _replace_file(temporary, path)


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[str]:
    """Give the name of a temporary file that becomes ``path`` when the block has succeeded. Several
    processes may do so at once.

    Raises:
        OSError: the disk refuses; ``path`` stays as it was.
    """
    path = os.path.abspath(path)
    descriptor, temporary = tempfile.mkstemp(
        prefix=os.path.basename(path) + ".", dir=os.path.dirname(path)
    )
    os.close(descriptor)
    try:
        yield temporary
        # What mkstemp and some libraries create, only its owner may read.
        os.chmod(temporary, 0o666 & ~_UMASK)
        _replace_file(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[str]:
    """Give the name of a temporary folder that becomes ``path`` when the block has succeeded.

    Raises:
        OSError: the disk refuses, or ``path`` exists and is not empty.
    """
    path = os.path.abspath(path)
    parent = os.path.dirname(path)
    temporary = tempfile.mkdtemp(prefix=os.path.basename(path) + ".", dir=parent)
    try:
        yield temporary
        os.chmod(temporary, 0o777 & ~_UMASK)
        sync_tree(temporary)
        os.rename(temporary, path)  # replaces an empty folder, refuses any other
        sync(parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def replace_folder(source: str, target: str) -> None:
    """Move the folder ``source`` to ``target`` and remove what was there.

    Linux exchanges the two at once, so that there is always a whole ``target``. Where the file
    system cannot (NFS), the former one is ``target.old`` for the moment between two renames.

    Raises:
        OSError: the disk refuses.
    """
    former = f"{target}.old"
    if not os.path.lexists(target):
        os.rename(source, target)
    elif _exchange(source, target):
        former = source
    else:
        shutil.rmtree(former, ignore_errors=True)
        os.rename(target, former)
        os.rename(source, target)
    sync(os.path.dirname(os.path.abspath(target)))
    shutil.rmtree(former, ignore_errors=True)


def _replace_file(source: str, target: str | os.PathLike[str]) -> None:
    sync(source)
    os.replace(source, target)
    sync(os.path.dirname(os.path.abspath(target)))


def _exchange(first: str, second: str) -> bool:
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:  # glibc before 2.28
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0
