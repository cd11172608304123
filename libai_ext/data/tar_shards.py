"""Tar files as WebDataset writes them, with random access.

:mod:`libai_ext.data.tar_scan` says which members make a sample.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO, Callable, Iterator, Sequence

import numpy as np
from PIL import Image

from libai_ext.data.decode import MAX_BYTES, BadImage, Decoder
from libai_ext.data.fingerprint import of_labels
from libai_ext.data.retry import is_unavailable, read_with_retry
from libai_ext.data.tar_scan import MOST_DIGITS, NO_LABEL, VERSION, ShardIndex, scan
from libai_ext.data.walk import EXTENSIONS, Skipped, warn_once
from libai_ext.errors import DataError, UserError
from libai_ext.files.atomic import atomic_file
from libai_ext.files.lock import exclusive
from libai_ext.files.regular import open_regular
from libai_ext.files.user_cache import user_cache

logger = logging.getLogger(__name__)

_OPEN_FILES = 128  # of one process; shards may be thousands


class TarShards:
    """The samples of all shards, one shard after the other.

    The headers of a shard are scanned once. The index is kept in a cache folder and is valid while
    the shard's path, size and modification time stay the same. Images are read by their offset.

    Args:
        shards: paths; ``shard-{000000..000009}.tar`` stands for ten.
        mode, decoding: arguments of :class:`Decoder`.

    Raises:
        DataError: a shard is missing or not a plain tar file, there is no image, or only some of
            the samples have a class.
    """

    def __init__(self, shards: str | Sequence[str], mode: str | int = "RGB", **decoding):
        patterns = [shards] if isinstance(shards, str) else list(shards)
        self.shards = [path for pattern in patterns for path in expand_braces(pattern)]
        self.decode = Decoder(mode, **decoding)
        parts = self._indices()
        self.shard_sizes = [len(part.offset) for part in parts]
        self._shard = np.repeat(np.arange(len(parts)), self.shard_sizes)
        self._offset, self._size, self.labels = (
            np.concatenate([part[column] for part in parts]) for column in range(3)
        )
        self._names = [part.name for part in parts]
        self._first = np.searchsorted(self._shard, np.arange(len(parts)))
        skipped = _skipped(parts)
        if skipped:
            warn_once(f"{', '.join(patterns)}: skipped {skipped}")
        if not len(self._shard):
            raise DataError(f"no image ({', '.join(EXTENSIONS)}) in {', '.join(patterns)}")
        self.classes = self._classes()
        self._files: tuple[int, OrderedDict] = (os.getpid(), OrderedDict())

    def _indices(self) -> list[ShardIndex]:
        return [load_index(path) for path in self.shards]

    def __getstate__(self):
        return dict(self.__dict__, _files=(-1, OrderedDict()))

    def __len__(self) -> int:
        return len(self._shard)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """
        Raises:
            BadImage: the member is truncated or no readable image.
            DataError: the shard cannot be read.
            DataUnavailable: the disk or server did not come back.
        """
        size = int(self._size[index])
        if size > MAX_BYTES:
            raise BadImage(self.name(index), f"{size:,} bytes, more than any image has")
        data = self._data(index)
        if len(data) < size:
            raise BadImage(self.name(index), f"the shard ends after {len(data)} of {size} bytes")
        return self.decode(data, self.name(index)), int(self.labels[index])

    def identity(self) -> Iterator[bytes]:
        """See :mod:`libai_ext.data.fingerprint`."""
        yield from of_labels(self)
        yield self._size.tobytes()
        yield from (names.tobytes() for names in self._names)

    def _data(self, index: int) -> bytes:
        shard = self.shards[int(self._shard[index])]
        try:
            return read_with_retry(lambda: self._read(index), shard, is_unavailable)
        except OSError as error:
            raise DataError(f"cannot read {shard}: {error.strerror}") from error

    def _read(self, index: int) -> bytes:
        shard = int(self._shard[index])
        try:
            return os.pread(
                self._descriptor(shard), int(self._size[index]), int(self._offset[index])
            )
        except OSError:
            descriptor = self._files[1].pop(shard, None)  # a stale descriptor does not recover
            if descriptor is not None:
                os.close(descriptor)
            raise

    def name(self, index: int) -> str:
        shard = int(self._shard[index])
        member = bytes(self._names[shard][index - self._first[shard]])
        return f"{self.shards[shard]}:{member.decode('utf-8', 'replace')}"

    def _classes(self) -> list[str]:
        missing = self.labels == NO_LABEL
        if missing.all():
            self.labels = np.zeros_like(self.labels)
            return [""]
        if missing.any():
            raise DataError(f"{self.name(int(missing.argmax()))} has no .cls, others have one")
        return [str(number) for number in range(self.labels.max() + 1)]

    def _descriptor(self, shard: int) -> int:
        pid, files = self._files
        if pid != os.getpid():  # the files belong to the parent, which may close them
            files = OrderedDict()
            self._files = (os.getpid(), files)
        if shard not in files:
            while len(files) >= _OPEN_FILES:
                os.close(files.popitem(last=False)[1])
            with open_regular(self.shards[shard]) as file:
                files[shard] = os.dup(file.fileno())
        files.move_to_end(shard)
        return files[shard]


def _skipped(parts: Sequence[ShardIndex]) -> Skipped:
    skipped = Skipped()
    for part in parts:
        for row in part.skipped:
            kind, name, count = bytes(row).decode("utf-8", "replace").split("\t")
            skipped.add(kind, name, int(count))
    return skipped


def expand_braces(pattern: str) -> list[str]:
    """Expand ``a-{08..10}.tar`` and ``{train,val}.tar`` as the shell does.

    >>> expand_braces("a-{08..10}.tar")
    ['a-08.tar', 'a-09.tar', 'a-10.tar']
    """
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if numbers:
        first, last = numbers.groups()
        width = len(first) if first.startswith("0") else 0
        choices = [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
    else:
        choices = match[1].split(",")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [path for choice in choices for path in expand_braces(head + choice + tail)]


def load_index(shard: str) -> ShardIndex:
    """The index of a local shard."""
    try:
        status = os.stat(shard)
    except OSError as error:
        raise DataError(f"shard {shard}: {error.strerror}") from error
    key = f"{os.path.realpath(shard)}\n{status.st_size}\n{status.st_mtime_ns}"
    return cached_index(key, shard, lambda: scan(shard))


def cached_index(key: str, shard: str, make: Callable[[], ShardIndex]) -> ShardIndex:
    """Read an index from the cache, or make it and fill the cache.

    Args:
        key: of the shard's place and version.
        shard: its name, for messages.
    """
    key = f"{VERSION} {EXTENSIONS}\n{key}"  # what a scan depends on besides the shard
    try:
        cached = user_cache() / "tar_index" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
        cached.parent.mkdir(parents=True, exist_ok=True)
        # The ranks of a job start together: one makes it, the others wait for its result.
        with exclusive(cached.with_suffix(".lock")):
            index = read_index(cached)
            if index is None:
                index = make()
                write_index(cached, index)
            return index
    except DataError:
        raise
    except (OSError, UserError) as error:
        logger.warning(f"no index cache, {shard} is scanned at each start: {error}")
        return make()


def write_index(path: str | os.PathLike[str], index: ShardIndex) -> None:
    """Write a file for :func:`read_index`."""
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **index._asdict())


def read_index(path: Path) -> ShardIndex | None:
    """None if it is missing, damaged or of another version."""
    try:
        with open_regular(path) as file:
            return parse_index(file)
    except FileNotFoundError:
        return None
    except Exception as error:  # NumPy raises many kinds of errors for damaged archives
        logger.warning(f"index cache {path} is damaged and is built again: {error!r:.200}")
        return None


def parse_index(file: BinaryIO) -> ShardIndex:
    """Read an index of unknown origin.

    Raises:
        Exception: of many kinds: it is damaged, or no scan makes it.
    """
    with np.load(file, allow_pickle=False) as content:
        names = [name for name in ShardIndex._fields if name in content]
        index = ShardIndex(**{name: content[name] for name in names})
    _check_index(index)
    return index


def _check_index(index: ShardIndex) -> None:
    """
    Raises:
        ValueError: no scan makes such an index.
    """
    numbers = np.stack(index[:3])  # fails where their lengths differ
    kinds = numbers.dtype == np.int64 and index.name.dtype.kind == index.skipped.dtype.kind == "S"
    if not kinds or numbers.ndim != 2 or index.name.shape != numbers[0].shape:
        raise ValueError("its columns are not those of an index")
    if index.length.shape or index.length.dtype.kind != "i" or index.digest.shape:
        raise ValueError("its length or digest is not that of a shard")
    if not re.fullmatch(rb"([0-9a-f]{64})?", index.digest.astype("S").item()):
        raise ValueError("its digest is no SHA-256")
    labels = numbers[2]
    if (numbers[:2] < 0).any() or ((labels < NO_LABEL) | (labels >= 10**MOST_DIGITS)).any():
        raise ValueError("it holds numbers that no scan finds")
    _skipped([index])
