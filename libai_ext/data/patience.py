"""Waiting for data whose disk or server is away for a while."""

from __future__ import annotations

import errno
import logging
import os
import time
from typing import Callable, TypeVar

from libai_ext.errors import DataError, DataUnavailable

T = TypeVar("T")

logger = logging.getLogger(__name__)

# How long one read is tried again, before the run saves and ends so that it can be restarted.
RETRY_SECONDS = 60
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
# What a disk, a network file system or FUSE says when it is not there at present. Not what a user
# has to mend: no permission, no such file.
_PASSING = {
    getattr(errno, name)
    for name in (
        "EIO EREMOTEIO ENXIO ENODEV ESTALE ETIMEDOUT ECONNRESET ECONNREFUSED ECONNABORTED EPIPE "
        "EHOSTDOWN EHOSTUNREACH ENETDOWN ENETUNREACH ENETRESET ENOTCONN ESHUTDOWN EAGAIN EBUSY "
        "ENFILE EINTR"
    ).split()
}


def patiently(read: Callable[[], T], what: str, may_pass: Callable[[Exception], bool]) -> T:
    """What ``read()`` gives, called again for up to ``RETRY_SECONDS`` while its error may pass.

    Args:
        what: is read; for messages.
        may_pass: see :func:`passing` and :func:`away`.

    Raises:
        DataUnavailable: it did not pass.
        OSError, DataError: one that will not.
    """
    began, pause = None, _FIRST_PAUSE
    while True:
        try:
            result = read()
        except (OSError, DataError) as error:
            if not may_pass(error):
                raise
            why = (error.strerror if isinstance(error, OSError) else None) or str(error)
            if began is None:
                began = time.monotonic()
                logger.warning(f"cannot read {what}: {why}; tried again for {RETRY_SECONDS} s")
            elif time.monotonic() - began > RETRY_SECONDS:
                raise DataUnavailable(
                    f"cannot read {what}: {why}, for more than {RETRY_SECONDS} s"
                ) from error
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        else:
            if began is not None:
                logger.warning(f"{what} is read again, after {time.monotonic() - began:.1f} s")
            return result


def passing(error: Exception) -> bool:
    """Whether an error, or the cause of a :class:`DataError`, is one of a disk or server that is
    away at present."""
    cause = error.__cause__ if isinstance(error, DataError) else error
    return isinstance(cause, OSError) and cause.errno in _PASSING


def away(error: Exception) -> bool:
    """The same of a file that was there: it may also be missing, together with its folder or all
    that was in it, as when a file system is not mounted."""
    if isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ENOTDIR):
        return _is_gone(os.path.dirname(os.path.realpath(error.filename)))
    return passing(error)


def _is_gone(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except OSError:
        return True
