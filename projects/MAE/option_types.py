"""Types of command line options, for argparse. OneFlow is not needed."""

from __future__ import annotations

import argparse
from typing import Callable


def whole(least: int) -> Callable[[str], int]:
    """A whole number of at least ``least``."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise _wrong(f"a whole number of at least {least}", text)
        return number

    return read


def above_zero(text: str) -> float:
    """A finite number above 0."""
    return _number(text, lambda value: 0 < value < float("inf"), "a number above 0")


def mask_ratio(text: str) -> float:
    return _number(text, lambda value: 0 <= value < 1, "at least 0 and below 1")


def pair(text: str) -> tuple[int, int]:
    """``HEIGHTxWIDTH``, both at least 1; a single number is both."""
    first, _, second = text.partition("x")
    try:
        return whole(1)(first), whole(1)(second if "x" in text else first)
    except argparse.ArgumentTypeError:
        raise _wrong("two whole numbers of at least 1, as 14x28", text) from None


def _number(text: str, holds: Callable[[float], bool], words: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not holds(number):
        raise _wrong(words, text)
    return number


def _wrong(words: str, text: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"must be {words}, not {text!r}")
