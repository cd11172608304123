"""``record.json``: what is needed to use the weights of a checkpoint.

The project defines its content. Here it is a JSON object with a version.
"""

from __future__ import annotations

import json
import os
from typing import Any, Mapping

from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.files.regular import read_regular

RECORD = "record.json"
VERSION = 1
MAX_BYTES = 16 << 20


def dumps(record: Mapping[str, Any]) -> str:
    """The record as text, with its version."""
    return json.dumps({"version": VERSION, **record}, indent=1)


def loads(text: str | bytes, origin: str) -> dict[str, Any]:
    """Parse a record.

    Args:
        origin: name of the file, for messages.

    Raises:
        CheckpointError: it is not a record, or has a later version.
    """
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{origin}: {error}") from None
    if not isinstance(record, dict) or type(record.get("version")) is not int:
        raise CheckpointError(f"{origin}: not the record of a checkpoint")
    if record["version"] > VERSION:
        raise CheckpointError(
            f"{origin} is of version {record['version']}, this program reads {VERSION}: update it"
        )
    return record


def read(folder: str) -> dict[str, Any] | None:
    """The record in a checkpoint's folder; None if there is no such file.

    Raises:
        CheckpointError: see :func:`loads`.
    """
    path = os.path.join(folder, RECORD)
    return loads(read_text(path), path) if os.path.isfile(path) else None


def read_text(path: str, limit: int = MAX_BYTES) -> bytes:
    """Read a small file.

    Raises:
        CheckpointError: it cannot be read, or is too large.
    """
    try:
        return read_regular(path, limit)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
