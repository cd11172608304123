"""The symbol table of a shared library (ELF, 64 bits, little-endian)."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import numpy as np

_SECTION = np.dtype(
    [("name_type", "<u4", 2), ("flags_address", "<u8", 2), ("offset", "<u8"), ("size", "<u8")]
    + [("link", "<u4"), ("rest", "V20")]
)
_SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2")]
    + [("value", "<u8"), ("size", "<u8")]
)
_SYMTAB = 2  # type of a section
_FUNCTION = 2  # type of a symbol


class Symbols:
    """Functions of a library, those included that it does not export."""

    def __init__(self, path: Path):
        with open(path, "rb") as file:
            self._file = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start, count = self._number(40, 8), self._number(60, 2)
        sections = np.frombuffer(self._file, _SECTION, count, start)
        table = sections[sections["name_type"][:, 1] == _SYMTAB][0]
        symbols = np.frombuffer(
            self._file, _SYMBOL, int(table["size"]) // _SYMBOL.itemsize, int(table["offset"])
        )
        names = sections[table["link"]]
        self._names = np.frombuffer(self._file, np.uint8, int(names["size"]), int(names["offset"]))
        self._first_name = int(names["offset"])
        self._defined = symbols[(symbols["info"] & 15 == _FUNCTION) & (symbols["section"] != 0)]
        self._undefined = symbols[symbols["section"] == 0]

    def functions(self, prefix: str) -> dict[str, tuple[int, int]]:
        """Offset and size of the functions whose names begin so."""
        found = self._begin(self._defined, prefix)
        return {self._name(s): (int(s["value"]), int(s["size"])) for s in found}

    def wanted(self, prefix: str) -> list[str]:
        """What the library takes from others, of the names that begin so."""
        names = (self._name(s) for s in self._begin(self._undefined, prefix))
        return sorted({name.split("@")[0] for name in names})

    def names(self, offsets) -> dict[int, str]:
        """Names of the functions at these offsets."""
        found = self._defined[np.isin(self._defined["value"], np.array(offsets, np.uint64))]
        return {int(s["value"]): self._name(s) for s in found}

    def _number(self, offset: int, size: int) -> int:
        return int.from_bytes(self._file[offset : offset + size], "little")

    def _begin(self, symbols: np.ndarray, prefix: str) -> np.ndarray:
        for place, character in enumerate(prefix.encode()):
            at = np.minimum(symbols["name"].astype(np.int64) + place, len(self._names) - 1)
            symbols = symbols[self._names[at] == character]
        return symbols

    def _name(self, symbol) -> str:
        start = self._first_name + int(symbol["name"])
        return self._file[start : self._file.find(b"\0", start)].decode()


def demangle(symbol: str) -> str:
    """The C++ name of a symbol; the symbol where it has none."""
    library = ctypes.CDLL("libstdc++.so.6")
    library.__cxa_demangle.restype = ctypes.c_void_p
    name = library.__cxa_demangle(symbol.encode(), None, None, None)
    if not name:
        return symbol
    text = ctypes.string_at(name).decode()
    ctypes.CDLL(None).free(ctypes.c_void_p(name))
    return text
