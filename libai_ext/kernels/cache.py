"""The folder of built libraries. A library is code: it is loaded only if its checksum is right and
only the user and root can have written it."""

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
    """A library must not be loaded; the message says why."""


def cache_dir() -> Path:
    """The directory that holds all built libraries.

    Raises:
        FileNotFoundError: the user has no home, and no variable names a folder.
    """
    if "LIBAI_EXT_CACHE" in os.environ:
        return Path(os.environ["LIBAI_EXT_CACHE"])
    return user_cache()


def make_private(folder: Path) -> None:
    """Make a folder that only its owner can write to, or change an existing one.

    Raises:
        Untrusted: it belongs to another user, or its file system has no permissions.
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
        Untrusted: users other than this one and root can write to it.
    """
    if status.st_uid not in (os.geteuid(), 0):
        raise Untrusted(f"{path} belongs to another user (number {status.st_uid})")
    if status.st_mode & _OTHERS_WRITE:
        raise Untrusted(f"{path} can be written by others (mode {stat.S_IMODE(status.st_mode):o})")


def verify(library: Path) -> None:
    """Compare a library in a private cache with its checksum.

    Raises:
        FileNotFoundError: the library is missing.
        Untrusted: other users can have written it, or it has changed.
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
    """Give a temporary path for a library. At the end of the block it moves into the cache, with
    its checksum. The caller holds the lock.

    Raises:
        OSError: writing fails.
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
    """One process at a time; the lock ends with its process."""
    with exclusive(cache / "build.lock"):
        for leftover in cache.glob(f"{_BUILDING}*"):  # of a build that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        yield
