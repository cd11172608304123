"""Data sets of tar shards: their order, and the shards to fetch next."""

from __future__ import annotations

from typing import Any

import numpy as np

from libai_ext.data.concat import Concat
from libai_ext.data.remote.shards import RemoteTarShards
from libai_ext.data.sampler import GlobalOrder
from libai_ext.data.shard_order import ShardWindows
from libai_ext.data.skip_unreadable import SkipUnreadable
from libai_ext.errors import ConfigError

# Shards in a window, where the config leaves it open and the shards are on a server. With shards of
# ten thousand samples, a sample is shuffled among eighty thousand.
DEFAULT_WINDOW = 8


def shard_windows(source: Any, window: int | None) -> ShardWindows | None:
    """The order of a data set; None: a permutation of all samples.

    Args:
        window: ``train.shard_window``. None: :data:`DEFAULT_WINDOW` if a shard is on a server.

    Raises:
        ConfigError: a root has no shards, or the cache has no room for a window.
    """
    parts = _parts(source)
    remote = [part for part in parts if isinstance(part, RemoteTarShards)]
    if window is None and not remote:
        return None
    if not all(hasattr(part, "shard_sizes") for part in parts):
        raise ConfigError(
            "train.shard_window: all roots of data.train must be tar shards, Parquet or Arrow files"
            + (", as some of them are on a server" if remote else ", or leave it unset")
        )
    window = window or DEFAULT_WINDOW
    sizes = sorted((size for part in remote for size in part.shard_bytes), reverse=True)
    most = sum(sizes[:window])
    if remote and most > remote[0].cache.limit:
        raise ConfigError(
            f"train.shard_window={window} shards have up to {most / 2**30:.3g} GiB, more than the "
            f"cache may hold, and would be fetched again and again: set data.cache_gib to "
            f"{2 * most / 2**30:.3g}, or a smaller window"
        )
    return ShardWindows([size for part in parts for size in part.shard_sizes], window)


def fetch_ahead(source: Any, order: GlobalOrder, iteration: int) -> None:
    """Begin to fetch the shards of the present window, and those of the next one for which the
    cache has room, if this is a data worker and they are on a server."""
    parts = _parts(source)
    if not any(isinstance(part, RemoteTarShards) for part in parts):
        return
    ends = np.cumsum([len(part.shard_sizes) for part in parts])
    now, following = order.shards_at(iteration)
    used = 0
    wanted: list[list[int]] = [[] for _ in parts]
    for shard in (*now, *following):
        owner = int(np.searchsorted(ends, shard, "right"))
        part = parts[owner]
        if not isinstance(part, RemoteTarShards):
            continue
        number = shard - int(ends[owner]) + len(part.shard_sizes)
        used += part.shard_bytes[number]
        if used > part.cache.limit:
            break
        wanted[owner].append(number)
    for part, numbers in zip(parts, wanted):
        if numbers:
            part.fetch_ahead(numbers)


def _parts(source: Any) -> list:
    """The sources of the roots, in order."""
    if isinstance(source, SkipUnreadable):
        return _parts(source.source)
    if isinstance(source, Concat):
        return [leaf for part in source.parts for leaf in _parts(part)]
    return [source]
