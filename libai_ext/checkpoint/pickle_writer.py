"""Write pickle opcodes of protocol 2: they can name classes that cannot be imported here."""

from __future__ import annotations

import struct
from typing import Iterable

PROTOCOL = b"\x80\x02"


def text(value: str) -> bytes:
    """BINUNICODE."""
    encoded = value.encode("utf-8")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def integer(value: int) -> bytes:
    """LONG1; large enough for any number in a checkpoint."""
    value = int(value)
    encoded = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + struct.pack("<B", len(encoded)) + encoded


def integers(values: Iterable[int]) -> bytes:
    """A tuple of integers."""
    return b"(" + b"".join(integer(value) for value in values) + b"t"


def global_name(module: str, name: str) -> bytes:
    """GLOBAL."""
    return f"c{module}\n{name}\n".encode()


CALL_ORDERED_DICT = global_name("collections", "OrderedDict") + b")R"
