"""Model of a folder on a disk: what was written, and what would survive a loss of power.

A file's content survives as of the last ``fsync`` of the file, a folder's list of names as of that
of the folder. By chance, a disk may keep any part of the later changes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO, Iterator, NamedTuple

# (names, content) that may survive. "torn": half of a file that was not synced.
SURVIVORS = (
    ("synced", "synced"),
    ("all", "synced"),
    ("synced", "all"),
    ("all", "torn"),
)


class Operation(NamedTuple):
    """An entry of the shim's record."""

    name: str
    number: int  # of the inode
    place: int
    first: str
    second: str
    data: bytes


def read_record(file: BinaryIO) -> Iterator[Operation]:
    for line in file:
        name, number, place, first, second, size = line.decode()[:-1].split("\t")
        yield Operation(name, int(number), int(place), first, second, file.read(int(size)))


class _File:
    def __init__(self, content: bytes = b""):
        self.content = bytearray(content)
        self.synced = bytes(content)

    def sync(self) -> None:
        self.synced = bytes(self.content)

    def surviving(self, content: str) -> bytes:
        if content == "torn" and self.synced != self.content:
            return bytes(self.content[: len(self.content) // 2])
        return self.synced if content == "synced" else bytes(self.content)


class _Folder:
    def __init__(self):
        self.names: dict[str, _File | _Folder] = {}
        self.synced: dict[str, _File | _Folder] = {}

    def sync(self) -> None:
        self.synced = dict(self.names)


class Disk:
    """The files below ``root``, all synced at first; :meth:`apply` changes them."""

    def __init__(self, root: Path):
        self.root = str(root)
        self.nodes: dict[int, Any] = {}  # _File or _Folder
        self.top = self._read(root)

    def _read(self, path: Path):
        if path.is_dir():
            folder = _Folder()
            folder.names = {inner.name: self._read(inner) for inner in path.iterdir()}
            folder.sync()
            node: Any = folder
        else:
            node = _File(path.read_bytes())
        self.nodes[path.stat().st_ino] = node
        return node

    def _place(self, path: str) -> tuple[dict, str]:
        *folders, name = os.path.relpath(path, self.root).split("/")
        node = self.top
        for folder in folders:
            node = node.names[folder]
        return node.names, name

    def apply(self, operation: Operation) -> None:
        name, number, place, first, second, data = operation
        if name in ("create", "mkdir"):
            names, base = self._place(first)
            names[base] = self.nodes[number] = _File() if name == "create" else _Folder()
        elif name == "write":
            content = self.nodes[number].content
            content.extend(bytes(max(0, place - len(content))))
            content[place : place + len(data)] = data
        elif name == "truncate":
            del self.nodes[number].content[place:]
        elif name == "sync":
            self.nodes[number].sync()
        elif name == "remove":
            names, base = self._place(first)
            del names[base]
        else:
            (one, a), (other, b) = self._place(first), self._place(second)
            moved, replaced = one.pop(a), other.get(b)
            other[b] = moved
            if name == "exchange":
                one[a] = replaced

    def state(self, names: str, content: str) -> dict[str, bytes | None]:
        """Path -> content, None for a folder; see SURVIVORS."""
        found: dict[str, bytes | None] = {}

        def add(folder: _Folder, path: str) -> None:
            entries = folder.synced if names == "synced" else folder.names
            for name, node in entries.items():
                if isinstance(node, _Folder):
                    found[path + name] = None
                    add(node, f"{path}{name}/")
                else:
                    found[path + name] = node.surviving(content)

        add(self.top, "")
        return found


def put(state: dict[str, bytes | None], folder: Path) -> None:
    """Write the files of a state; a folder comes before its files."""
    folder.mkdir()
    for name, content in state.items():
        path = folder / name
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content)


def take(folder: Path) -> dict[str, bytes | None]:
    """The state of a real folder."""
    return {
        path.relative_to(folder).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
    }
