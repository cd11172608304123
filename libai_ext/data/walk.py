"""One walk through a folder of images: what it gives, what it passes over, what it refuses.

| in a folder | rule |
|---|---|
| a file with one of :data:`EXTENSIONS`, in any case | an image |
| a sub-folder | walked as well |
| a link | what it leads to |
| a hidden name (``.ipynb_checkpoints``, ``._1.jpg``) or a system's (``__MACOSX``) | passed over |
| a file of another extension, a pipe, a socket, a device | passed over |
| a link to a folder that it lies in | passed over: its images are met already |
| a file with one of :data:`UNREAD` | error: the image would be lost |
| a folder that cannot be read, a link to nowhere | error: a class or images would be lost |

A file is opened when its sample is read, not here: one that cannot be read is an error then.
"""

from __future__ import annotations

import functools
import logging
import os
from typing import Sequence

from libai_ext.errors import DataError
from libai_ext.text import printable

logger = logging.getLogger(__name__)

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".gif", ".ppm", ".pgm"),
    *(".pbm", ".pnm", ".tif", ".tiff", ".jp2", ".tga", ".psd"),
)
# Images in formats that Pillow does not read by itself.
UNREAD = (
    *(".heic", ".heif", ".avif", ".jxl", ".svg", ".exr", ".dcm"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"),
)
# Folders that systems put beside a user's: archives of macOS, network drives, Windows, ext4.
_SYSTEM = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information"}
_SYSTEM |= {"lost+found"}


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is none of the data."""
    return name.startswith(".") or name in _SYSTEM


class PassedOver:
    """What a walk left out: how many of each kind, by name or extension."""

    def __init__(self):
        self._kinds: dict[str, dict[str, int]] = {}

    def __bool__(self) -> bool:
        return bool(self._kinds)

    def add(self, kind: str, name: str, count: int = 1) -> None:
        names = self._kinds.setdefault(kind, {})
        names[name] = names.get(name, 0) + count

    def items(self) -> list[tuple[str, str, int]]:
        """(kind, name, how many) of each."""
        return [
            (kind, name, count)
            for kind, names in self._kinds.items()
            for name, count in names.items()
        ]

    def __str__(self) -> str:
        return ", ".join(
            f"{sum(names.values()):,} {kind} ({some(_counted(names))})"
            for kind, names in sorted(self._kinds.items())
        )


class Walk:
    """The walk below one root.

    Attributes:
        passed: what was passed over so far.
    """

    def __init__(self, root: str):
        self.root = root.rstrip("/") or "/"
        self.passed = PassedOver()

    def images(self, folder: str) -> list[str]:
        """Paths of all images of a folder, sorted; those of its sub-folders come after its own.

        Raises:
            DataError: see the table.
        """
        found, folders = self.entries(folder)
        for inner in folders:
            found += self.images(inner)
        return found

    def entries(self, folder: str) -> tuple[list[str], list[str]]:
        """(images, folders) right in a folder, as sorted paths.

        Raises:
            DataError: see the table.
        """
        images: list[str] = []
        folders: list[str] = []
        try:
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    kind = self._sort_out(entry)
                    if kind is not None:
                        (images if kind == "image" else folders).append(entry.path)
        except OSError as error:
            raise DataError(
                f"cannot read {error.filename or folder}: {error.strerror}; its images would be "
                "missing: make it readable, or take it out of the data"
            ) from error
        return images, folders

    def _sort_out(self, entry: os.DirEntry) -> str | None:
        """``"image"``, ``"folder"``, or None for what is passed over."""
        extension = os.path.splitext(entry.name)[1].lower()
        if is_hidden(entry.name):
            self.passed.add("hidden", entry.name)
        elif entry.is_dir():
            if not entry.is_symlink() or not self._leads_back(entry.path):
                return "folder"
            self.passed.add("links to a folder around them", entry.path)
        elif not entry.is_file():
            if entry.is_symlink() and not os.path.exists(entry.path):
                raise DataError(
                    f"the link {entry.path} leads nowhere, to {os.readlink(entry.path)}: restore "
                    "what it led to, or take it out of the data"
                )
            self.passed.add("special files", entry.name)
        elif extension in EXTENSIONS:
            return "image"
        elif extension in UNREAD:
            raise DataError(
                f"{entry.path}: images in {extension} are not read: convert them to one of "
                f"{', '.join(EXTENSIONS)}, or take them out of the data"
            )
        else:
            self.passed.add("files that are no images", extension or "no extension")
        return None

    def _leads_back(self, link: str) -> bool:
        """Whether a link to a folder leads to one that is being walked, or to one around it."""
        target, folder = os.path.realpath(link), link
        while folder != self.root:
            folder = os.path.dirname(folder)
            if os.path.commonpath([os.path.realpath(folder), target]) == target:
                return True
        return False


@functools.lru_cache(maxsize=None)
def warn_once(text: str) -> None:
    """Log a warning, the first time only: a test split is opened at each evaluation. It is one
    line, whatever the files that it names are called."""
    logger.warning(printable(text))


def _counted(names: dict[str, int]) -> list[str]:
    return [f"{name} {count:,}" if count > 1 else name for name, count in names.items()]


def some(names: Sequence[str], shown: int = 4) -> str:
    """The first few names, for a message."""
    return printable(", ".join([*names[:shown], *["..."] * (len(names) > shown)]))
