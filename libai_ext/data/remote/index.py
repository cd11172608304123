"""The index of a shard on a server: from the cache of indices, from a file beside the shard, or by
fetching the shard once."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import zipfile
from functools import partial

import numpy as np

from libai_ext.data.remote.cache import Shard, ShardCache, digest_of
from libai_ext.data.remote.server import RemoteFile, Version, check_url
from libai_ext.data.retry import is_temporary, read_with_retry
from libai_ext.data.tar_scan import ShardIndex, scan
from libai_ext.data.tar_shards import cached_index, parse_index, write_index
from libai_ext.errors import DataError, DataUnavailable
from libai_ext.text import masked

logger = logging.getLogger(__name__)

SUFFIX = ".index"
# Of an index, as it is sent and unpacked. One of a million samples has 100 MB.
MAX_INDEX = 256 << 20


def find_shard(url: str, cache: ShardCache) -> tuple[Shard, ShardIndex]:
    """A shard with its index.

    Raises:
        DataError: there is none, it is larger than the cache, or no plain tar file; or the file
            beside it is of another shard.
        DataUnavailable: the server does not answer.
    """
    check_url(url)
    name = masked(url)
    version = _version(url)
    if version is None:
        raise DataError(f"{url}: there is no such file on the server")
    if version.size > cache.limit:
        raise DataError(
            f"{url} has {version.size / 2**30:.3g} GiB, more than the cache may hold: set "
            f"data.cache_gib ({cache.limit / 2**30:.3g}) higher, or pack smaller shards"
        )
    # A signature changes while the shard does not.
    place = name if version.tag else url
    key = f"{place}\n{version.size}\n{version.tag}"
    shard = Shard(url, version.size, hashlib.sha256(key.encode()).hexdigest()[:32])
    index = cached_index(key, name, lambda: _beside(shard) or _by_fetching(shard, cache))
    return shard._replace(digest=index.digest.item().decode()), index


def write_beside(shard: str) -> str:
    """Write the index of a local shard, to be put on a server beside it; its path.

    Raises:
        DataError: it is no plain tar file.
        OSError: it cannot be read, or the index not be written.
    """
    index = scan(shard)
    write_index(shard + SUFFIX, _complete(index, os.path.getsize(shard), digest_of(shard)))
    return shard + SUFFIX


def _complete(index: ShardIndex, size: int, digest: str) -> ShardIndex:
    return index._replace(length=np.array(size), digest=np.array(digest.encode()))


def _version(url: str) -> Version | None:
    """None: there is no such file."""
    try:
        return read_with_retry(RemoteFile(url).version, url, is_temporary)
    except FileNotFoundError:
        return None


def _beside(shard: Shard) -> ShardIndex | None:
    """The index that a file beside the shard holds; None: there is no such file."""
    url = re.sub(r"\.tar(?=$|[?#])", f".tar{SUFFIX}", shard.url, count=1)
    try:
        version = _version(url)
    except DataUnavailable:
        raise
    except DataError as error:
        # S3 says so too where there is no file and the user may not list the folder.
        logger.warning(f"no index of {masked(shard.url)}: {error}")
        return None
    if version is None:
        return None
    if version.size > MAX_INDEX:
        raise DataError(f"{url} has {version.size:,} bytes, more than an index may have")
    try:
        content = _read(url, version.size)
        _check_unpacked(content)
        index = parse_index(io.BytesIO(content))
    except DataError:
        raise
    except Exception as error:  # NumPy raises many kinds of errors for damaged archives
        raise DataError(
            f"{url} is no index ({error!r:.200}): write it again with tools/index_shards.py, or "
            "remove it"
        ) from error
    if not index.digest.item() or index.length != shard.size:
        raise DataError(
            f"{url} is the index of a shard of {int(index.length):,} bytes, the shard has "
            f"{shard.size:,}: write it again with tools/index_shards.py, or remove it"
        )
    logger.info(f"index of {masked(shard.url)}: {masked(url)}")
    return index


def _read(url: str, size: int) -> bytearray:
    remote, content = RemoteFile(url), bytearray()
    try:
        while len(content) < size:
            read = partial(remote.read, len(content), size)
            content += read_with_retry(read, url, is_temporary)
    except FileNotFoundError as error:
        raise DataError(f"cannot read {url}: {error.strerror}") from error
    finally:
        remote.close()
    return content


def _check_unpacked(content: bytearray) -> None:
    """
    Raises:
        ValueError: it would need too much memory.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        if sum(member.file_size for member in file.infolist()) > MAX_INDEX:
            raise ValueError("it is too large when it is unpacked")


def _by_fetching(shard: Shard, cache: ShardCache) -> ShardIndex:
    """Once more if the shard is no tar file: the bytes may have been damaged on their way."""
    logger.info(
        f"{masked(shard.url)} has no index beside it (tools/index_shards.py writes one): it is "
        "fetched to make one"
    )
    try:
        return _scanned(shard, cache)
    except DataError as error:
        if not cache.path(shard).exists():
            raise
        logger.warning(f"{error}; fetching it once more")
        cache.remove(shard)
        return _scanned(shard, cache)


def _scanned(shard: Shard, cache: ShardCache) -> ShardIndex:
    while True:
        try:
            with cache.open(shard):
                path = cache.path(shard)
                return _complete(scan(masked(shard.url), path), shard.size, digest_of(path))
        except FileNotFoundError:
            cache.fetch(shard)
