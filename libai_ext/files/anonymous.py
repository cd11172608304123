"""Files in memory; the kernel frees them with the last process that has them open."""

from __future__ import annotations

import os
import tempfile


def anonymous_file(name: str):
    """A file for processes to inherit; ``name`` shows only in /proc."""
    # A file object, so that the descriptor is closed with the last reference. Pythons built for
    # C libraries older than 2.27, such as conda's, have no memfd_create.
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create(name), "r+b", buffering=0)
    return tempfile.TemporaryFile(dir="/dev/shm", buffering=0)
