"""Repeat reads while a disk or server is unavailable."""

from __future__ import annotations

import errno
import logging
import os
import time
from typing import Callable, TypeVar

from libai_ext.errors import DataError, DataUnavailable
from libai_ext.text import masked

T = TypeVar("T")

logger = logging.getLogger(__name__)

# How long a read is retried. After that the run saves a checkpoint and ends, for a restart.
RETRY_SECONDS = 60
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
# Errors of a disk, a network file system or FUSE that is unavailable for now. Not those that a user
# has to fix, such as no permission or no such file.
_TEMPORARY = {
    getattr(errno, name)
    for name in (
        "EIO EREMOTEIO ENXIO ENODEV ESTALE ETIMEDOUT ECONNRESET ECONNREFUSED ECONNABORTED EPIPE "
        "EHOSTDOWN EHOSTUNREACH ENETDOWN ENETUNREACH ENETRESET ENOTCONN ESHUTDOWN EAGAIN EBUSY "
        "ENFILE EINTR"
    ).split()
}


def read_with_retry(read: Callable[[], T], what: str, retriable: Callable[[Exception], bool]) -> T:
    """Call ``read()``; after a retriable error call it again, for up to ``RETRY_SECONDS``.

    Args:
        what: name of the data, for messages.
        retriable: whether to retry, see :func:`is_temporary` and :func:`is_unavailable`.

    Raises:
        DataUnavailable: the last try failed with a retriable error.
        OSError, DataError: another error.
    """
    began, pause, what = None, _FIRST_PAUSE, masked(what)
    while True:
        try:
            result = read()
        except (OSError, DataError) as error:
            if not retriable(error):
                raise
            why = (error.strerror if isinstance(error, OSError) else None) or str(error)
            if began is None:
                began = time.monotonic()
                logger.warning(f"cannot read {what}: {why}; retrying for {RETRY_SECONDS} s")
            elif time.monotonic() - began > RETRY_SECONDS:
                raise DataUnavailable(
                    f"cannot read {what}: {why}, for more than {RETRY_SECONDS} s"
                ) from error
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        else:
            if began is not None:
                logger.warning(f"{what} can be read again, after {time.monotonic() - began:.1f} s")
            return result


def is_temporary(error: Exception) -> bool:
    """Whether an error, or the cause of a :class:`DataError`, is that of an unavailable disk or
    server. A :class:`DataUnavailable` has been retried already."""
    if isinstance(error, DataUnavailable):
        return False
    cause = error.__cause__ if isinstance(error, DataError) else error
    return isinstance(cause, OSError) and cause.errno in _TEMPORARY


def is_unavailable(error: Exception) -> bool:
    """The same for a file that existed before. It may also be missing together with its folder, if
    a file system is not mounted."""
    if isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ENOTDIR):
        return _is_gone(os.path.dirname(os.path.realpath(error.filename)))
    return is_temporary(error)


def _is_gone(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except OSError:
        return True
