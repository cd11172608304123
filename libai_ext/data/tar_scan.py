"""Find the samples of a tar file by its headers.

Members of a sample have the same folder, and the same name up to the first dot:

| member | rule |
|---|---|
| ``000123.jpg``: an extension of :mod:`libai_ext.data.walk` | the image, the first of several |
| ``000123.input.jpg`` | the image, if it is the only one of its sample |
| ``000123.cls``, ``000123.label.cls`` | the class number, as text |
| other members, hidden ones, other images | skipped |
| a link with an image's name, an unreadable image format | error |

They are consecutive, as WebDataset writes them. If a class is not next to its image, it is matched
by its key, if no other sample has this key. A class without an image is an error.
"""

from __future__ import annotations

import os
import tarfile
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from libai_ext.data.walk import EXTENSIONS, UNREAD, Skipped, is_hidden
from libai_ext.errors import DataError
from libai_ext.files.regular import open_regular

# To be raised when a scan finds other samples than before: caches of older scans are not used.
VERSION = 1
NO_LABEL = -1
MOST_DIGITS = 6  # of a class number
_MAX_HEADER = 1 << 20  # bytes
_MAX_NAME = 4096  # bytes, as of a path


class ShardIndex(NamedTuple):
    """The positions of a shard's samples, in its order."""

    offset: np.ndarray  # int64: first byte of the image
    size: np.ndarray  # int64: its bytes
    label: np.ndarray  # int64: class number, or -1
    name: np.ndarray  # UTF-8 bytes: the image member
    skipped: np.ndarray  # UTF-8 bytes: kind, name and count of what was skipped, tab-separated
    # Of a shard on a server: its bytes, and their hexadecimal SHA-256.
    length: np.ndarray = np.array(-1)  # int64
    digest: np.ndarray = np.array(b"")


class _Sample:
    """Consecutive members with one key."""

    def __init__(self, key: tuple[str, str]):
        self.key = key
        self.images: list[tuple[str, tarfile.TarInfo]] = []  # with their extensions
        self.label = NO_LABEL


def scan(shard: str, path: str | os.PathLike[str] | None = None) -> ShardIndex:
    """Read the headers of a shard.

    Args:
        shard: its path or, for the messages, its name.
        path: None: ``shard``.

    Raises:
        DataError: it is not a plain tar file, or breaks a rule of the table.
    """
    try:
        with open_regular(path or shard) as file:
            headers: Any = _Headers(file)
            with tarfile.open(fileobj=headers, mode="r:") as tar:
                return _Scan(shard, tar).index()
    except (DataError, MemoryError):
        raise
    except Exception as error:  # tarfile raises many kinds of errors for damaged headers
        raise DataError(f"shard {shard} is no plain (uncompressed) tar file: {error}") from error


class _Headers:
    """A file with reads limited to the size of a header: tarfile trusts the length of a name in a
    header, and a sparse file may have terabytes."""

    def __init__(self, file: BinaryIO):
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, count: int) -> bytes:
        if count > _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {count:,} bytes")
        return self._read(count)


class _Scan:
    def __init__(self, shard: str, tar: tarfile.TarFile):
        self.shard = shard
        self.tar = tar
        self.skipped = Skipped()
        self.rows: list[list] = []
        # Images without a class, and classes without an image, by key.
        self.images: dict[tuple, list[list]] = {}
        self.labels: dict[tuple, list[int]] = {}

    def index(self) -> ShardIndex:
        sample = _Sample(("", ""))
        for member in self.tar:
            self.tar.members = []  # type: ignore[attr-defined]  # it keeps all it has seen
            folder, file = os.path.split(member.name)
            stem, _, extension = file.partition(".")
            if member.isdir() or self._is_hidden(member.name):
                continue
            if (folder, stem) != sample.key:
                self._close(sample)
                sample = _Sample((folder, stem))
            self._add(member, extension.lower(), sample)
        self._close(sample)
        self._check_end()
        self._join()
        columns = list(zip(*self.rows)) or [(), (), (), ()]
        offset, size, label = (np.array(column, np.int64) for column in columns[:3])
        skipped = ["\t".join(map(str, row)).encode() for row in self.skipped.items()]
        names = np.array(columns[3], np.bytes_)
        return ShardIndex(offset, size, label, names, np.array(skipped, np.bytes_))

    def _check_end(self) -> None:
        """tarfile ends silently at a damaged header and at zeros. Zeros alone may follow."""
        tar: Any = self.tar
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(_MAX_HEADER).strip(b"\0"):
            raise DataError(
                f"{self.shard}: the header at byte {tar.offset:,} is damaged, or the archive ends "
                "there and another one follows: samples would be missing"
            )

    def _is_hidden(self, name: str) -> bool:
        for part in name.split("/"):
            if part not in (".", "..") and is_hidden(part):
                self.skipped.add("hidden", "._*" if part.startswith("._") else part)
                return True
        return False

    def _add(self, member: tarfile.TarInfo, extension: str, sample: _Sample) -> None:
        last = os.path.splitext(member.name)[1].lower()
        if last in UNREAD:
            raise DataError(
                f"{self.shard}:{member.name}: {last} images cannot be read: convert them to one "
                f"of {', '.join(EXTENSIONS)}"
            )
        if last in EXTENSIONS:
            if not member.isreg() or member.issparse():
                raise DataError(
                    f"{self.shard}:{member.name} is a link, a sparse or a special file: pack "
                    "the files themselves (tar --dereference --hard-dereference)"
                )
            sample.images.append((f".{extension}", member))
        elif last == ".cls" and member.isreg():
            file = self.tar.extractfile(member)
            label = _class_number(file.read(100) if file else b"", self.shard, member.name)
            if sample.label not in (NO_LABEL, label):
                raise DataError(f"{self.shard}:{member.name} is a second class of its sample")
            sample.label = label
        else:
            kind = "members that are not images" if member.isreg() else "special files"
            self.skipped.add(kind, f".{extension}" if extension else "no extension")

    def _close(self, sample: _Sample) -> None:
        """Add the rows of a sample."""
        plain = [image for image in sample.images if image[0] in EXTENSIONS]
        if not plain and len(sample.images) > 1:
            names = " and ".join(member.name for _, member in sample.images[:2])
            raise DataError(
                f"{self.shard}: {names} are images of one sample: rename the one to be read, "
                "so that it has one dot, as 0001.jpg"
            )
        chosen = (plain or sample.images)[:1]
        for _, member in chosen:
            name = member.name.encode("utf-8", "surrogateescape")
            if len(name) > _MAX_NAME:
                raise DataError(f"{self.shard}: a name of {len(name):,} bytes")
            self.rows.append([member.offset_data, member.size, sample.label, name])
            if sample.label == NO_LABEL:
                self.images.setdefault(sample.key, []).append(self.rows[-1])
        for extension, member in sample.images:
            if member is not chosen[0][1]:
                self.skipped.add("further images of samples", extension)
        if not chosen and sample.label != NO_LABEL:
            self.labels.setdefault(sample.key, []).append(sample.label)

    def _join(self) -> None:
        """Match the other classes with their images."""
        for key, labels in self.labels.items():
            rows = self.images.get(key, [])
            name = f"{self.shard}:{os.path.join(*key)}.cls"
            if not rows:
                raise DataError(f"{name} is a class without an image")
            if len(rows) > 1 or len(labels) > 1:
                raise DataError(f"{name}: there are several images or classes of this name")
            rows[0][2] = labels[0]


def _class_number(content: bytes, shard: str, name: str) -> int:
    text = content.decode("ascii", "replace").strip()
    if not text.isdigit() or len(text) > MOST_DIGITS:
        raise DataError(f"{shard}:{name} holds {text!r:.40}, not a class number")
    return int(text)
