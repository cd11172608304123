"""Read values from the ``data.mdb`` of an LMDB, without mapping it.

LMDB's own library maps the file and trusts it: a truncated file kills the process with a bus error,
and a damaged one may do anything. Here every page is read and checked, and these faults raise
exceptions. Processes may share a reader across a fork.

Source of the format: ``mdb.c`` of LMDB 0.9 (``MDB_meta``, ``MDB_page``, ``MDB_node``), 64 bits,
little-endian.
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from libai_ext.files.regular import open_regular

_PAGE = struct.Struct("<QHHHH")  # number, pad, flags, end of the node table, start of the nodes
_META = struct.Struct("<IIQQ" + 2 * "IHHQQQQQ" + "QQ")
_NODE = struct.Struct("<HHHH")  # size or child, low and high; flags or child; length of the key
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_BRANCH, _LEAF, _OVERFLOW, _METAPAGE = 1, 2, 4, 8
_ELSEWHERE = 1  # a node's value is in pages of its own
_NO_PAGE = 2**64 - 1
_MAX_DEPTH = 32
_PAGE_SIZES = [1 << power for power in range(8, 17)]
_MAX_PAGE = _PAGE_SIZES[-1]
_MAX_OFFSET = 2**63 - 1 - _MAX_PAGE


class LmdbError(Exception):
    """The file is not an LMDB, or a page that was read is damaged."""


class _Meta(NamedTuple):
    transaction: int
    page_size: int
    flags: int  # of the main database
    used: int  # its pages, including the two with the metas
    last_page: int
    root: int


class LmdbFile:
    """The main database of a file.

    Args:
        path: of the file; it stays open.

    Raises:
        OSError: it cannot be opened.
        LmdbError: it is not a readable LMDB, or is truncated.
    """

    def __init__(self, path: str):
        self.path = path
        self._file = open_regular(path)
        meta = self._meta()
        if meta.flags:
            raise LmdbError(f"it is a database of another kind (flags {meta.flags:#x})")
        if self.size() < meta.used * meta.page_size:
            raise LmdbError(
                f"it is truncated: {self.size():,} bytes, and {meta.used:,} pages of "
                f"{meta.page_size:,} are in use"
            )

    def __reduce__(self):
        return LmdbFile, (self.path,)

    def size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self._file.fileno()).st_size

    def get(self, key: bytes, limit: int) -> bytes | None:
        """The value of a key; None if the key is missing.

        Raises:
            OSError: the file cannot be read.
            LmdbError: the file is damaged, or the value has more than ``limit`` bytes.
        """
        meta = self._meta()  # read again: another process may have written
        number = meta.root
        if number == _NO_PAGE:
            return None
        for _ in range(_MAX_DEPTH):
            page = self._read(number * meta.page_size, meta.page_size)
            try:
                found, _, flags, end, _ = _PAGE.unpack_from(page)
                if found != number or flags & ~0x10 not in (_BRANCH, _LEAF):
                    raise LmdbError(f"page {number} is damaged")
                nodes = struct.unpack_from(f"<{(end - _PAGE.size) // 2}H", page, _PAGE.size)
                if flags & _LEAF:
                    return self._value(page, nodes, key, meta.page_size, limit)
                number = _child(page, nodes, key)
            except (struct.error, IndexError):
                raise LmdbError(f"page {number} is damaged") from None
        raise LmdbError(f"its pages are nested more than {_MAX_DEPTH} deep")

    def _value(self, page: bytes, nodes: tuple, key: bytes, page_size: int, limit: int):
        place = _last_not_after(page, nodes, key, 0)
        if place < 0 or _key(page, nodes[place]) != key:
            return None
        low, high, flags, length = _NODE.unpack_from(page, nodes[place])
        size = low | high << 16
        if size > limit or flags & ~_ELSEWHERE:
            raise LmdbError(f"the value has {size:,} bytes or is of another kind")
        start = nodes[place] + _NODE.size + length
        if not flags:
            value = page[start : start + size]
            if len(value) < size:
                raise IndexError
            return value
        (number,) = struct.unpack_from("<Q", page, start)
        head = self._read(number * page_size, _PAGE.size)
        found, _, flags, _, _ = _PAGE.unpack(head)
        if found != number or flags & ~0x10 != _OVERFLOW:
            raise LmdbError(f"page {number} is damaged")
        return self._read(number * page_size + _PAGE.size, size)

    def _meta(self) -> _Meta:
        """The newer one of the two."""
        first = self._meta_at(0)
        if first is None:
            raise LmdbError("it does not begin as one")
        second = self._meta_at(first.page_size)
        return first if second is None else max(first, second)

    def _meta_at(self, start: int) -> _Meta | None:
        data = self._read(start, _PAGE.size + _META.size)
        _, _, flags, _, _ = _PAGE.unpack_from(data)
        magic, version, _, _, *numbers, last_page, transaction = _META.unpack_from(data, _PAGE.size)
        page_size, (_, kind, _, *pages, _, root) = numbers[0], numbers[8:]
        if not flags & _METAPAGE or (magic, version) != (_MAGIC, _VERSION):
            return None
        if page_size not in _PAGE_SIZES:
            return None
        return _Meta(transaction, page_size, kind, 2 + sum(pages), last_page, root)

    def _read(self, start: int, count: int) -> bytes:
        """
        Raises:
            LmdbError: the file ends earlier.
        """
        # pread allocates all of ``count`` first.
        if count > _MAX_PAGE and start + count > self.size():
            data = b""
        else:
            data = os.pread(self._file.fileno(), count, min(start, _MAX_OFFSET))
        if len(data) < count:
            raise LmdbError(f"it is truncated: {self.size():,} bytes, not {start + count:,}")
        return data


def _key(page: bytes, node: int) -> bytes:
    length = _NODE.unpack_from(page, node)[3]
    return page[node + _NODE.size : node + _NODE.size + length]


def _last_not_after(page: bytes, nodes: tuple, key: bytes, first: int) -> int:
    """Index of the last node whose key is not after ``key``; ``first - 1`` if all are after."""
    low, high = first, len(nodes)
    while low < high:
        middle = (low + high) // 2
        if _key(page, nodes[middle]) <= key:
            low = middle + 1
        else:
            high = middle
    return low - 1


def _child(page: bytes, nodes: tuple, key: bytes) -> int:
    """The next page to search. The first node of a branch has no key: it is before all others."""
    low, high, more, _ = _NODE.unpack_from(page, nodes[_last_not_after(page, nodes, key, 1)])
    return low | high << 16 | more << 32
