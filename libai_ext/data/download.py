"""Download an archive once per machine, verify it, and unpack the files that are needed."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

from libai_ext.errors import DataError
from libai_ext.files.atomic import atomic_folder
from libai_ext.files.lock import exclusive

logger = logging.getLogger(__name__)

_ATTEMPTS = 5
_CHUNK = 1 << 20
_TIMEOUT, _PAUSE = 60, 2  # seconds


@dataclass(frozen=True)
class Archive:
    """A published ``.tar.gz``.

    Args:
        folder: the folder inside it that holds the files.
        files: the needed ones.
    """

    url: str
    md5: str
    folder: str
    files: Sequence[str]


def provide(archive: Archive, root: str, download: bool) -> Path:
    """The folder ``root/<archive.folder>`` with all files of the archive.

    One process downloads and unpacks; the others of this machine wait. The folder appears when it
    is complete.

    Raises:
        DataError: the files are missing and ``download`` is not set, or the download failed.
    """
    folder = Path(root, archive.folder)
    if _complete(folder, archive):
        return folder
    if not download:
        raise DataError(
            f"{folder} does not hold {', '.join(archive.files)}: set data.download=true to fetch "
            f"{archive.url}, or unpack that archive in {root}"
        )
    try:
        Path(root).mkdir(parents=True, exist_ok=True)
        with exclusive(Path(root, f".{archive.folder}.lock")):
            if not _complete(folder, archive):
                path = Path(root, archive.url.rsplit("/", 1)[1])
                fetch(archive.url, path, archive.md5)
                _unpack(path, folder, archive)
                path.unlink()
    except OSError as error:
        raise DataError(f"cannot download to {root}: {error}") from error
    return folder


def _complete(folder: Path, archive: Archive) -> bool:
    return all((folder / name).is_file() for name in archive.files)


def fetch(url: str, path: Path, md5: str) -> None:
    """Download to ``path``; the file appears when its checksum is verified.

    Received bytes are in ``path.part``. A later attempt requests the rest, or starts again if the
    server cannot send a part.

    Args:
        md5: its first digits are enough; empty: the file is not checked.

    Raises:
        DataError: the server cannot be reached, or sends other bytes (which are removed).
    """
    if path.is_file() and _md5(path).startswith(md5):
        return
    part = path.with_name(path.name + ".part")
    resumed = part.exists()
    _receive_persistently(url, part)
    if resumed and not _md5(part).startswith(md5):
        logger.warning(f"{part} did not begin as {url} does: starting again")
        part.unlink()
        _receive_persistently(url, part)
    found = _md5(part)
    if not found.startswith(md5):
        part.unlink()
        raise DataError(
            f"{url} has the wrong checksum (MD5 {found}, expected {md5}): the file was removed; "
            "try again, and if it stays so the server does not have the published file"
        )
    os.replace(part, path)


def _receive_persistently(url: str, part: Path) -> None:
    """``_receive``, repeated if the connection breaks.

    Raises:
        DataError: it breaks every time, or the server returns an error.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return _receive(url, part)
        except urllib.error.HTTPError as error:
            raise DataError(f"cannot download {url}: HTTP status {error.code}") from error
        except (OSError, http.client.HTTPException) as error:
            received = part.stat().st_size if part.exists() else 0
            logger.warning(f"{url}: {error}; {received:,} bytes received, attempt {attempt}")
            if attempt == _ATTEMPTS:
                raise DataError(
                    f"cannot download {url}: {error}; {received:,} bytes are kept in {part} and "
                    "the next run goes on from there"
                ) from error
            time.sleep(_PAUSE)
    return None


def _receive(url: str, part: Path) -> None:
    """Append the missing bytes of ``url`` to ``part``."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: nothing is missing; the checksum decides
            raise
        return
    with response:
        resumed = response.status == 206
        if have and not resumed:
            logger.info(f"{url}: the server gives no parts, starting again")
        size = response.headers.get("Content-Length")
        logger.info(f"downloading {url}: {int(size or 0):,} bytes" + f" after {have:,}" * resumed)
        count = 0
        with open(part, "ab" if resumed else "wb") as file:
            while True:
                chunk = response.read(_CHUNK)
                if not chunk:
                    break
                file.write(chunk)
                count += len(chunk)
        if size is not None and count < int(size):
            raise ConnectionError(f"the connection ended after {count:,} of {int(size):,} bytes")


def _md5(path: Path) -> str:
    digest = hashlib.md5()  # what the publishers give
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(_CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()


def _unpack(path: Path, folder: Path, archive: Archive) -> None:
    """Unpack only the needed files, into a new folder.

    Raises:
        DataError: the archive is damaged or lacks a file.
    """
    wanted = {f"{archive.folder}/{name}": name for name in archive.files}
    try:
        with atomic_folder(folder) as temporary, tarfile.open(path, "r:gz") as tar:
            for member in tar:
                name = wanted.get(os.path.normpath(member.name))
                content = tar.extractfile(member) if name is not None and member.isreg() else None
                if name is not None and content is not None:
                    with content as source, open(os.path.join(temporary, name), "wb") as target:
                        shutil.copyfileobj(source, target, _CHUNK)
            if not _complete(Path(temporary), archive):
                raise DataError(f"{path} lacks some of {', '.join(wanted)}")
            if folder.exists():  # an incomplete one from elsewhere
                aside = tempfile.mkdtemp(prefix=f"{archive.folder}.old.", dir=folder.parent)
                os.replace(folder, aside)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{path} cannot be unpacked: {error}") from error
