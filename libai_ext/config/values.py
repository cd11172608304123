"""Parse the text after ``key=`` for keys that hold a text or a list of texts.

Other values follow Hydra's grammar of overrides, which cannot read most paths.
"""

from __future__ import annotations

import os
from typing import Any

from libai_ext.errors import ConfigError

_OPENING, _CLOSING = "{[(", ")]}"


def text(value: str) -> str | list[str] | None:
    """The text without its quotes. ``~/`` is the home folder, ``null`` is None, and brackets
    without quotes make a list.
    """
    if value == "null":
        return None
    if value.startswith("[") and value.endswith("]"):
        return texts(value)
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1]
    return os.path.expanduser(value) if value.startswith("~/") else value


def texts(value: str) -> list[str] | None:
    """``[a,b]`` or ``a``; a comma within quotes or braces does not separate.

    Raises:
        ConfigError: several texts without brackets.
    """
    if value == "null":
        return None
    bare = not (value.startswith("[") and value.endswith("]"))
    items = _split(value if bare else value[1:-1])
    if bare and len(items) > 1:
        raise ConfigError(f"several values are written [{value}], one with a comma '\"{value}\"'")
    return [_item(item) for item in items]


def _item(value: str) -> Any:
    one = value.strip()
    return one if one == "null" else text(one)


def _split(value: str) -> list[str]:
    if not value.strip():
        return []
    items, depth, quote = [""], 0, ""
    for letter in value:
        if letter == "," and not depth and not quote:
            items.append("")
            continue
        if letter in "'\"" and not items[-1].strip():
            quote = letter
        elif letter == quote:
            quote = ""
        elif not quote:
            depth = max(0, depth + (letter in _OPENING) - (letter in _CLOSING))
        items[-1] += letter
    return items
