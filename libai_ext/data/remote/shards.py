"""Tar shards on a server as a source."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import BinaryIO, Sequence

from libai_ext.data.remote.ahead import Ahead
from libai_ext.data.remote.cache import Shard, ShardCache
from libai_ext.data.remote.index import find_shard
from libai_ext.data.remote.server import check_url
from libai_ext.data.retry import is_temporary, read_with_retry
from libai_ext.data.tar_scan import ShardIndex
from libai_ext.data.tar_shards import TarShards, expand_braces
from libai_ext.data.workers import prefetch
from libai_ext.errors import DataError
from libai_ext.files.user_cache import user_cache
from libai_ext.text import masked

CACHE_GIB = 32.0
# Shards whose indices are read at once.
_AT_ONCE = 8


class RemoteTarShards(TarShards):
    """The samples of shards on a server, in the order and with the classes of the same shards in a
    folder. A shard is fetched to a cache on this machine when a sample of it is read.

    fsspec's thread does not survive a fork. So this process, which forks data workers, never uses
    fsspec itself: a child of it does, or a data worker.

    Args:
        shards: URLs; ``https://host/shard-{000000..000009}.tar`` stands for ten.
        mode, decoding: arguments of :class:`libai_ext.data.decode.Decoder`.
        cache_dir: None: the user's cache folder.
        cache_gib: GiB of shards that the cache may hold.

    Attributes:
        shard_bytes: bytes of each shard.

    Raises:
        DataError: see :class:`TarShards`; or a URL is not allowed, or a package is missing.
        DataUnavailable: the server does not answer.
    """

    def __init__(
        self,
        shards: str | Sequence[str],
        mode: str = "RGB",
        cache_dir: str | None = None,
        cache_gib: float = CACHE_GIB,
        **decoding,
    ):
        patterns = [shards] if isinstance(shards, str) else list(shards)
        self.urls = [url for pattern in patterns for url in expand_braces(pattern)]
        for url in self.urls[:1]:
            check_url(url)
        try:
            folder = Path(cache_dir) if cache_dir else user_cache()
        except OSError as error:
            raise DataError(f"no folder for a cache: {error}; or set data.cache_dir") from error
        self.cache = ShardCache(folder / "libai_ext_shards", int(cache_gib * 2**30))
        self.ahead = Ahead(self.cache)
        self.found: list[Shard] = []
        super().__init__([masked(pattern) for pattern in patterns], mode, **decoding)

    def _indices(self) -> list[ShardIndex]:
        self.shards = [masked(url) for url in self.urls]
        rows = prefetch(self._find, self.urls, min(_AT_ONCE, len(self.urls)), 1)
        self.found, indices = map(list, zip(*rows))
        self.shard_bytes = [shard.size for shard in self.found]
        return indices

    def _find(self, worker: int, number: int, url: str) -> tuple[Shard, ShardIndex]:
        return find_shard(url, self.cache)

    def fetch_ahead(self, numbers: Sequence[int]) -> None:
        """Begin to fetch these shards, if this is a data worker."""
        if multiprocessing.current_process().daemon:
            self.ahead.want([self.found[number] for number in numbers])

    def _data(self, index: int) -> bytes:
        shard = self.found[int(self._shard[index])]

        def read() -> bytes:
            with self._open(shard) as file:
                size, offset = int(self._size[index]), int(self._offset[index])
                return os.pread(file.fileno(), size, offset)

        try:
            return read_with_retry(read, str(self.cache.path(shard)), is_temporary)
        except OSError as error:
            raise DataError(f"cannot read {self.cache.path(shard)}: {error.strerror}") from error

    def _open(self, shard: Shard) -> BinaryIO:
        while True:
            try:
                return self.cache.open(shard)
            except (FileNotFoundError, NotADirectoryError):  # fetching names a wrong folder
                if multiprocessing.current_process().daemon:
                    self.cache.fetch(shard)
                else:
                    list(prefetch(self._fetch, [shard], 1, 1))

    def _fetch(self, worker: int, number: int, shard: Shard) -> None:
        self.cache.fetch(shard)
