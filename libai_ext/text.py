"""Escapes untrusted text, such as names of files and classes, and hides secrets of URLs."""

from __future__ import annotations

import re

# Control characters, line separators, marks that reorder text, and surrogates: Python reads bytes
# of a file name that are not UTF-8 as surrogates.
_UNSAFE = "\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_UNSAFE_CHARACTER = re.compile(f"[{_UNSAFE}]")
# Spreadsheets take it for the start of a formula.
_FORMULA = re.compile(r"[\s\x00]*[=+\-@＝＋－＠]")
# In place of a password or a signature.
HIDDEN = "***"
_USER = re.compile(r"(\w://)\S*@")
_QUERY = re.compile(r"""(\w://[^\s?'"]*\?)[^\s'"]*[^\s'":;,.)]""")


def masked(text: str) -> str:
    """Without what may be secret in a URL: ``user:password@``, and the query, which may be a
    signature.

    >>> masked("https://me:secret@host/a.tar?sig=1")
    'https://***@host/a.tar?***'
    """
    if "://" not in text:
        return text
    return _QUERY.sub(rf"\g<1>{HIDDEN}", _USER.sub(rf"\g<1>{HIDDEN}@", text))


def printable(text: str) -> str:
    r"""Escape to one line: ``\n``, ``\x1b``, and ``\xff`` for a byte that is not UTF-8."""
    return _UNSAFE_CHARACTER.sub(_escaped, text)


def printable_lines(text: str) -> str:
    """:func:`printable` for each line."""
    return "\n".join(map(printable, text.split("\n")))


def csv_cell(text: str) -> str:
    """For a CSV file: :func:`printable`, with an apostrophe before a formula."""
    return ("'" if _FORMULA.match(text) else "") + printable(text)


def _escaped(match: re.Match) -> str:
    character = match[0]
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
