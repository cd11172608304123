"""Files on a server, through fsspec, read in pieces.

fsspec runs the network in a thread of its own, which a fork would lose: only processes that are
never forked may call this module, see :mod:`libai_ext.data.remote.shards`.
"""

from __future__ import annotations

import errno
import os
import re
from typing import Any, NamedTuple

from libai_ext.data.retry import is_temporary
from libai_ext.errors import DataError
from libai_ext.text import HIDDEN, masked

# By the part before "://". fsspec knows more; some of them run programs or read local files.
PROTOCOLS = ("http", "https", "s3", "gs", "az", "abfs")
# Seconds: to connect, between two bytes, and for a piece.
CONNECT, READ, PIECE_SECONDS = 10, 30, 60
# Bytes of a request: after a failure smaller ones, for a slow or a broken line.
PIECE, SMALLEST = 8 << 20, 64 << 10
# HTTP statuses of a server that may answer later.
_LATER = {408, 425, 429, 500, 502, 503, 504}
_REFUSED = {401, 403, 407}
_HTTP = ("http", "https")
# Errors of aiohttp and botocore, by name, so that neither is needed: of a network that may work
# later, and of one that a user has to mend.
_OF_NETWORK = {"ClientConnectionError", "ClientPayloadError", "HTTPClientError", "ConnectionError"}
_FINAL = {"ClientSSLError", "ClientConnectorCertificateError", "SSLError", "InvalidURL"}
_FINAL |= {"TooManyRedirects", "FileExpired"}


class Version(NamedTuple):
    """A file's state on its server.

    Attributes:
        tag: ETag, or time of the last change; empty if the server gives neither.
    """

    size: int
    tag: str


class RemoteFile:
    """A file that is read from a position on.

    Args:
        url: see :func:`check_url`.
    """

    def __init__(self, url: str):
        self.url = url
        self.piece = PIECE
        self._system = _file_system(url)
        self._file: Any = None
        self._streams = False  # the server gives no parts

    def version(self) -> Version:
        """
        Raises:
            FileNotFoundError: there is no such file.
            OSError: the server may answer later.
            DataError: it refuses.
        """
        try:
            self._system.invalidate_cache()
            info = self._system.info(self.url)
        except Exception as error:
            raise _translated(error, self.url) from None
        size = info.get("size")
        if not isinstance(size, int) or size < 0:
            raise DataError(f"{self.url}: the server does not say how large it is")
        tags = (info.get(name) for name in ("ETag", "etag", "Last-Modified", "LastModified"))
        return Version(size, next((str(tag) for tag in tags if tag), ""))

    def read(self, start: int, size: int) -> bytes:
        """Bytes from ``start`` on, of a file of ``size`` bytes: at least one of them.

        Raises:
            OSError: the server may answer later; smaller pieces are then read.
            DataError: it refuses.
        """
        count = min(self.piece, size - start)
        try:
            data = self._read(start, count, size)
        except Exception as error:
            self.close()
            self.piece = max(SMALLEST, self.piece // 4)
            raise _translated(error, self.url) from None
        if not data or len(data) > count:
            self.close()
            raise OSError(errno.EIO, f"{len(data):,} bytes instead of {count:,}")
        return data

    def close(self) -> None:
        """Give up the connection."""
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except Exception:  # it has failed already
                pass

    def _read(self, start: int, count: int, size: int) -> bytes:
        if not self._streams:
            try:
                self._open(start, size)
                return self._file.read(count)
            except ValueError:  # an HTTP server that answers with the whole file
                self.close()
                self._streams = True
        if self._file is None or self._file.tell() != start:
            self._open_stream(start, size)
        return self._file.read(count)

    def _open(self, start: int, size: int) -> None:
        if self._file is None:
            known = {"size": size} if _protocol(self.url) in _HTTP else {}
            self._file = self._system.open(
                self.url, "rb", block_size=PIECE, cache_type="none", **known
            )
        self._file.seek(start)

    def _open_stream(self, start: int, size: int) -> None:
        self.close()
        self._file = self._system.open(
            self.url, "rb", block_size=0, size=size, timeout=_timeout(None)
        )
        while start:
            skipped = len(self._file.read(min(start, PIECE)))
            if not skipped:
                raise OSError(errno.EIO, "the file ends too early")
            start -= skipped


def check_url(url: str) -> None:
    """
    Raises:
        DataError: the URL is of no known protocol or no tar file, or its package is missing.
    """
    if _protocol(url) not in PROTOCOLS:
        raise DataError(f"{url}: shards can be at {', '.join(p + '://' for p in PROTOCOLS)}")
    if HIDDEN in url:
        raise DataError(
            f"{url}: the record of a run does not keep passwords and signatures: set data.train "
            "(data.test) to the whole URL"
        )
    if not re.split(r"[?#]", url)[0].endswith(".tar"):
        raise DataError(f"{url}: the name of a shard ends in .tar")
    try:
        import fsspec
        import fsspec.asyn  # noqa: F401

        fsspec.get_filesystem_class(_protocol(url))
    except ImportError as error:
        raise DataError(
            f"{url}: a package is missing ({error}): uv pip install '.[remote]'; gs:// needs gcsfs "
            "too, az:// and abfs:// adlfs"
        ) from None


def _protocol(url: str) -> str:
    return url.partition("://")[0]


_systems: dict[tuple[int, str], Any] = {}


def _file_system(url: str):
    """One for each process and protocol."""
    import fsspec

    protocol = _protocol(url)
    key = os.getpid(), protocol
    if key not in _systems:
        _systems[key] = fsspec.filesystem(
            protocol, skip_instance_cache=True, use_listings_cache=False, **_options(protocol)
        )
    return _systems[key]


def _options(protocol: str) -> dict[str, Any]:
    if protocol in _HTTP:
        # Proxies, and names and passwords from ~/.netrc, as other programs do.
        client = {
            "timeout": _timeout(PIECE_SECONDS),
            "trust_env": True,
            "response_class": _response_class(),
        }
        # Compressed answers have other positions.
        return {"client_kwargs": client, "headers": {"Accept-Encoding": "identity"}}
    if protocol == "s3":
        return {"config_kwargs": {"connect_timeout": CONNECT, "read_timeout": READ}}
    return {}


def _timeout(total: float | None):
    import aiohttp

    return aiohttp.ClientTimeout(total=total, sock_connect=CONNECT, sock_read=READ)


def _response_class():
    import aiohttp

    class Bounded(aiohttp.ClientResponse):
        """Reads no more than a piece into memory, whatever the server sends."""

        async def read(self) -> bytes:
            data = bytearray()
            async for chunk in self.content.iter_any():
                data += chunk
                if len(data) > PIECE:
                    self.close()
                    raise aiohttp.ClientPayloadError("a larger answer than was asked for")
            return bytes(data)

    return Bounded


def _translated(error: Exception, url: str) -> Exception:
    """An OSError with a temporary number if the server may answer later, a FileNotFoundError if it
    has no such file, else a DataError."""
    cause = error.__cause__
    if _protocol(url) in _HTTP and isinstance(error, FileNotFoundError) and cause is not None:
        error = cause if isinstance(cause, Exception) else error  # fsspec says so for any failure
    status = getattr(error, "status", None)
    kinds = {kind.__name__ for kind in type(error).__mro__}
    text = masked(str(error).replace(url, masked(url))) or type(error).__name__
    if status is not None:
        text = f"HTTP status {status}"
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return FileNotFoundError(errno.ENOENT, "there is no such file on the server", masked(url))
    if status in _LATER:
        return OSError(errno.EBUSY, text)
    if isinstance(error, PermissionError) or status in _REFUSED:
        return DataError(f"cannot read {url}: {text}: check the names, passwords and keys")
    if status is not None or kinds & _FINAL:
        return DataError(f"cannot read {url}: {type(error).__name__}: {text}")
    if "TimeoutError" in kinds:
        return OSError(errno.ETIMEDOUT, "the server is too slow")
    if kinds & _OF_NETWORK:
        return OSError(errno.ECONNRESET, text)
    if isinstance(error, OSError) and is_temporary(error):
        return OSError(error.errno, text)
    return DataError(f"cannot read {url}: {type(error).__name__}: {text}")
