"""``last_checkpoint`` in a run's output directory: the name of the checkpoint to resume from."""

from __future__ import annotations

import os
from pathlib import Path

from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.checkpoint.record import read_text
from libai_ext.files import atomic

POINTER = "last_checkpoint"


def read(run: str | os.PathLike[str]) -> Path:
    """The folder that the file names; the folder may be missing.

    Raises:
        CheckpointError: there is no such file, or it names no folder of ``run``.
    """
    pointer = Path(run, POINTER)
    name = read_text(str(pointer)).decode("utf-8", "replace").strip()
    if not name or "\0" in name or os.path.basename(name) != name:
        raise CheckpointError(f"{pointer}: there is no checkpoint {name!r:.80} in this folder")
    return pointer.with_name(name)


def write(run: str | os.PathLike[str], name: str) -> None:
    """Make the file name another checkpoint, atomically and synced to disk."""
    atomic.write_text(Path(run, POINTER), name)
