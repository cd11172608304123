"""A lock between the processes of a machine."""

from __future__ import annotations

import contextlib
import fcntl
from pathlib import Path
from typing import Iterator


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Wait for the lock ``path`` and hold it; the file stays.

    The kernel drops the lock when its process ends. A child that inherits the open file holds it
    on, so this is no lock for a run: see :mod:`libai_ext.engine.run_lock`.
    """
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
