"""What the launcher and its ranks tell each other: restarts, exit statuses, why a rank failed."""

from __future__ import annotations

import os

# Set by the launcher: a file of each rank's own. What it holds is shown once, at the end.
FAILURE_FILE = "LIBAI_EXT_FAILURE_FILE"
# The end of the name of another one: the exit status of ranks whose work is done.
SETTLED = ".settled"
# Set by the launcher: 0, or which restart after a crash this is.
ATTEMPT = "LIBAI_EXT_ATTEMPT"
# Exit statuses of a rank and of the launcher, beside 0, 1 and 128 + signal.
USAGE_ERROR = 2
SAVED_ON_SIGNAL = 75


def restarted() -> bool:
    """Whether the launcher has started this program again after a crash."""
    return int(os.environ.get(ATTEMPT, 0)) > 0


def tell(text: str) -> bool:
    """Leave ``text`` to the launcher; False where there is none to show it."""
    return _leave_word(text, "")


def settle(status: int) -> None:
    """Tell the launcher that this rank and all its peers have done their work: should the engine
    abort one of them on the way out, since another is gone, ``status`` stands."""
    _leave_word(str(status), SETTLED)


def _leave_word(text: str, suffix: str) -> bool:
    path = os.environ.get(FAILURE_FILE)
    if not path:
        return False
    try:
        with open(path + suffix, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
    except OSError:
        return False
    return True
