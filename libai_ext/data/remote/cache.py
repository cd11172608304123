"""Shards that were fetched to this machine, shared by its processes.

Files of the folder: ``KEY.tar`` is a whole shard; ``KEY.SIZE.part`` one of SIZE bytes that is being
fetched, or what a killed process has left of it. Its process holds the kernel's lock on it, and a
reader that on a whole one: nobody removes a locked file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import math
import os
import re
import time
from pathlib import Path
from typing import BinaryIO, Iterator, NamedTuple

from libai_ext.data.remote.server import RemoteFile
from libai_ext.data.retry import is_temporary, read_with_retry
from libai_ext.errors import DataError
from libai_ext.files.atomic import sync
from libai_ext.files.lock import exclusive
from libai_ext.files.regular import open_regular
from libai_ext.text import masked

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[0-9a-f]{32}\.(?:tar|(\d+)\.part)")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_PAUSE, _LONG = 0.1, 60  # seconds between two looks at a full cache, and until a warning
_BLOCK = 1 << 20
_TRIES = 2  # the first one may go on after what another version has left


class Shard(NamedTuple):
    """A shard on a server.

    Attributes:
        key: of its address and version; 32 hexadecimal digits.
        digest: hexadecimal SHA-256; empty: not known yet.
    """

    url: str
    size: int
    key: str
    digest: str = ""


class ShardCache:
    """Keeps whole shards, at most ``limit`` bytes with those that are being fetched. The least
    recently used ones are removed for others.

    Args:
        folder: made if it is missing.
        limit: bytes.
    """

    def __init__(self, folder: Path, limit: int):
        self.folder = folder
        self.limit = limit

    def open(self, shard: Shard) -> BinaryIO:
        """The whole shard, locked until it is closed.

        Raises:
            FileNotFoundError: it is not here.
        """
        file = open_regular(self.path(shard))
        fcntl.flock(file, fcntl.LOCK_SH)
        if os.fstat(file.fileno()).st_size == shard.size:
            os.utime(file.fileno())
            return file
        file.close()  # somebody has changed it
        self.remove(shard)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path(shard)))

    def fetch(self, shard: Shard, wait: bool = True) -> None:
        """Get a shard that is not here; another process may remove it at once.

        Args:
            wait: for room, or for another process that fetches it; else leave it.

        Raises:
            DataError: the server refuses, or its bytes are wrong, or the folder cannot be used.
            DataUnavailable: the server does not answer, or the disk is full.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._part(shard, wait) as part:
                if part is not None:
                    self._receive(shard, part)
                    sync(part.name)
                    os.rename(part.name, self.path(shard))
        except OSError as error:
            raise DataError(
                f"{shard.url} cannot be kept in {self.folder}: {error.strerror}; set "
                "data.cache_dir to another folder"
            ) from error

    def path(self, shard: Shard) -> Path:
        """Where the whole shard is, if it is here."""
        return self.folder / f"{shard.key}.tar"

    def remove(self, shard: Shard) -> None:
        """Remove a shard whose bytes are wrong."""
        with contextlib.suppress(FileNotFoundError):
            self.path(shard).unlink()

    @contextlib.contextmanager
    def _part(self, shard: Shard, wait: bool) -> Iterator[BinaryIO | None]:
        """The locked file of a shard that is to be fetched; None: it is here, or is left."""
        path = self.folder / f"{shard.key}.{shard.size}.part"
        while True:
            file = self._reserved(path, shard, wait)
            if file is None:
                yield None
                return
            with file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                except BlockingIOError:
                    yield None
                    return
                if _is_at(file, path):
                    yield file
                    return

    def _reserved(self, path: Path, shard: Shard, wait: bool) -> BinaryIO | None:
        """The part, for which there is room; None: it is here, or there is no room."""
        began = time.monotonic()
        while True:
            with exclusive(self.folder / "lock"):
                if self.path(shard).exists():
                    return None
                if path.exists() or self._make_room(shard.size):
                    return open(path, "ab", buffering=0)
            if not wait:
                return None
            if time.monotonic() - began > _LONG:
                began = math.inf
                logger.warning(
                    f"waiting for room for {masked(shard.url)}: all of {self.folder} is in use; "
                    "data.cache_gib sets its size"
                )
            time.sleep(_PAUSE)

    def _make_room(self, size: int) -> bool:
        """Remove shards until ``size`` bytes are free; False if too many are in use."""
        files = sorted(self._files(), key=lambda file: file[1])
        used = sum(bytes_ for _, _, bytes_ in files)
        for path, _, bytes_ in files:
            if used + size <= self.limit:
                break
            used -= bytes_ * _removed(path)
        return used + size <= self.limit

    def _files(self) -> Iterator[tuple[Path, int, int]]:
        """Path, time of the last use and bytes of each file; of a part, those it will have."""
        with os.scandir(self.folder) as entries:
            for entry in entries:
                name = _NAME.fullmatch(entry.name)
                if name:
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        yield Path(entry.path), status.st_mtime_ns, int(name[1] or status.st_size)

    def _receive(self, shard: Shard, part: BinaryIO) -> None:
        """Fetch what is missing, from the start again if the bytes are wrong."""
        for _ in range(_TRIES):
            found = self._receive_rest(shard, part)
            if shard.digest in ("", found):
                return
            logger.warning(f"{masked(shard.url)}: the bytes are not those of its index")
            part.truncate(0)
        raise DataError(
            f"{shard.url} has other bytes (SHA-256 {found:.12}) than its index says "
            f"({shard.digest:.12}): it has changed since it was indexed, or its server gives wrong "
            "bytes"
        )

    def _receive_rest(self, shard: Shard, part: BinaryIO) -> str:
        """Append the missing bytes; the SHA-256 of all."""
        begun = os.fstat(part.fileno()).st_size
        rest = f" after {begun:,}" if begun else ""
        logger.info(f"fetching {masked(shard.url)}: {shard.size:,} bytes{rest}")
        remote = RemoteFile(shard.url)
        digest = _digest_of(part.name)
        have = begun

        def receive() -> bytes:
            data = remote.read(have, shard.size)
            self._append(part, have, data)
            return data

        try:
            while have < shard.size:
                data = read_with_retry(receive, shard.url, _may_pass)
                digest.update(data)
                have += len(data)
        except FileNotFoundError as error:
            raise DataError(f"cannot read {shard.url}: {error.strerror}") from error
        finally:
            remote.close()
        return digest.hexdigest()

    def _append(self, part: BinaryIO, have: int, data: bytes) -> None:
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[part.write(rest) :]
        except OSError as error:
            part.truncate(have)
            if error.errno in _FULL:
                with exclusive(self.folder / "lock"):
                    self._give_back(len(data))
                raise OSError(error.errno, f"{error.strerror} in {self.folder}") from error
            raise

    def _give_back(self, size: int) -> None:
        """Remove old shards of ``size`` bytes or more, as the disk is full."""
        for path, _, _ in sorted(self._files(), key=lambda file: file[1]):
            with contextlib.suppress(FileNotFoundError):
                size -= path.stat().st_size * _removed(path)
            if size <= 0:
                return


def _may_pass(error: Exception) -> bool:
    return is_temporary(error) or isinstance(error, OSError) and error.errno in _FULL


def _removed(path: Path) -> bool:
    """Remove a file, unless it is in use."""
    try:
        with open(path, "r+b", buffering=0) as file:  # NFS locks files for the writer alone
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _digest_of(path: str | os.PathLike[str]):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(_BLOCK), b""):
            digest.update(block)
    return digest


def digest_of(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file."""
    return _digest_of(path).hexdigest()
