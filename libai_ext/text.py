"""Text from elsewhere, such as names of files and classes, made fit to be shown."""

from __future__ import annotations

import re

# Control characters (of terminals as well), separators of lines, marks that reorder text, and
# halves of surrogate pairs: Python reads bytes of a file's name that are no UTF-8 as such.
_UNFIT = "\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_UNFIT_CHARACTER = re.compile(f"[{_UNFIT}]")
# What spreadsheets take for the beginning of a formula, or skip before one.
_FORMULA = re.compile(r"[\s\x00]*[=+\-@＝＋－＠]")


def printable(text: str) -> str:
    r"""One line: ``\n``, ``\x1b``, and for a byte that is no UTF-8 ``\xff`` in place of it."""
    return _UNFIT_CHARACTER.sub(_escaped, text)


def printable_lines(text: str) -> str:
    """The same of each line of several."""
    return "\n".join(map(printable, text.split("\n")))


def cell(text: str) -> str:
    """For a CSV file: :func:`printable`, and an apostrophe before what would be a formula."""
    return ("'" if _FORMULA.match(text) else "") + printable(text)


def _escaped(match: re.Match) -> str:
    character = match[0]
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
