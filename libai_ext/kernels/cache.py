"""The folder of built libraries. A library is code: loaded is only what nobody but the user and
the superuser can have written, and what is whole."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from libai_ext.files.atomic import replace_folder
from libai_ext.files.lock import exclusive
from libai_ext.files.regular import open_regular
from libai_ext.files.user_cache import user_cache

LIBRARY_NAME = "libai_ext_kernels.so"
CHECKSUM_NAME = "sha256"
_BUILDING = "building-"
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class Untrusted(Exception):
    """A library is not to be loaded; the message says why."""


def cache_dir() -> Path:
    """The directory that holds all built libraries.

    Raises:
        FileNotFoundError: neither a variable nor a home names one.
    """
    if "LIBAI_EXT_CACHE" in os.environ:
        return Path(os.environ["LIBAI_EXT_CACHE"])
    return user_cache()


def make_private(folder: Path) -> None:
    """Make a folder that only its owner writes to; one that is there is made so.

    Raises:
        Untrusted: it is somebody else's, or its file system knows no such rights.
        OSError: it cannot be made.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_mode & _OTHERS_WRITE and status.st_uid == os.geteuid():
        folder.chmod(stat.S_IMODE(status.st_mode) & ~_OTHERS_WRITE)
    check_owner(folder, folder.stat())


def check_owner(path: Path, status: os.stat_result) -> None:
    """
    Raises:
        Untrusted: others than the user and the superuser can write there.
    """
    if status.st_uid not in (os.geteuid(), 0):
        raise Untrusted(f"{path} belongs to another user (number {status.st_uid})")
    if status.st_mode & _OTHERS_WRITE:
        raise Untrusted(f"{path} can be written by others (mode {stat.S_IMODE(status.st_mode):o})")


def verify(library: Path) -> None:
    """Compare a library with the checksum beside it. Its folder's own folder is private.

    Raises:
        FileNotFoundError: there is none.
        Untrusted: others can have written it, or it is not what was built.
    """
    if not os.path.lexists(library):
        raise FileNotFoundError(library)
    try:
        for path in (library.parent, library, library.with_name(CHECKSUM_NAME)):
            check_owner(path, path.lstat())
        with open_regular(library.with_name(CHECKSUM_NAME)) as file:
            expected = file.read(64)
        if _checksum(library) != expected:
            raise Untrusted(f"{library} is not what was built (size or checksum differs)")
    except OSError as error:
        raise Untrusted(f"{error.filename}: {error.strerror}") from error


def _checksum(library: Path) -> bytes:
    with open_regular(library) as file:
        return hashlib.sha256(file.read()).hexdigest().encode()


@contextlib.contextmanager
def building(library: Path) -> Iterator[Path]:
    """Give the path to build a library at; its folder appears, with the checksum, at the end of
    the block. For the process that holds the lock.

    Raises:
        OSError: the disk refuses.
    """
    cache = library.parent.parent
    with tempfile.TemporaryDirectory(dir=cache, prefix=_BUILDING) as work:
        built = Path(work) / "whole" / LIBRARY_NAME
        built.parent.mkdir(mode=0o700)
        yield built
        built.chmod(0o700)
        built.with_name(CHECKSUM_NAME).write_bytes(_checksum(built))
        built.with_name(CHECKSUM_NAME).chmod(0o600)
        replace_folder(str(built.parent), str(library.parent))


@contextlib.contextmanager
def lock(cache: Path) -> Iterator[None]:
    """Held by one process at a time; ends with the process, however it ends."""
    with exclusive(cache / "build.lock"):
        for leftover in cache.glob(f"{_BUILDING}*"):  # of a build that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        yield
