"""A fingerprint of the training data, from names and sizes; no image is read."""

from __future__ import annotations

import hashlib
import os
from typing import Any, Iterator, Sequence

import numpy as np

# How many file sizes are read: on a network drive, all of them take minutes.
_ASKED = 200


def fingerprint(source: Any) -> str | None:
    """A hash of ``source.identity()``, twelve hexadecimal digits; None if the source has no such
    method. It does not depend on the folder of the samples."""
    if not hasattr(source, "identity"):
        return None
    digest = hashlib.sha256()
    for part in source.identity():
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:12]


def of_labels(source: Any) -> Iterator[bytes]:
    """The class of each sample."""
    yield "\n".join(source.classes).encode("utf-8", "surrogateescape")
    yield np.asarray(source.labels, np.int64).tobytes()


def of_files(paths: Sequence[str]) -> Iterator[bytes]:
    """Names of all files without their folders, and sizes of some."""
    names = "\0".join(os.path.basename(path) for path in paths)
    yield names.encode("utf-8", "surrogateescape")
    for place in np.linspace(0, len(paths) - 1, min(_ASKED, len(paths))).astype(int):
        yield _size(paths[place])


def _size(path: str) -> bytes:
    try:
        return b"%d" % os.stat(path).st_size
    except OSError:  # reading the file reports it
        return b"?"
