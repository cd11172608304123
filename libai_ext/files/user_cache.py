"""The user's cache folder."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path:
    """``$XDG_CACHE_HOME/libai_ext``, else ``~/.cache/libai_ext``.

    Raises:
        FileNotFoundError: the user has no home, as in some containers.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if base.startswith("~"):
        raise FileNotFoundError("this user has no home: set HOME, or XDG_CACHE_HOME")
    return Path(base, "libai_ext")
