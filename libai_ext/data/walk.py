"""Finds the images in a folder.

| in a folder | rule |
|---|---|
| a file with one of :data:`EXTENSIONS`, in any case | an image |
| ``.npy`` | an image if ``data.mode`` is a number of channels, else skipped |
| a sub-folder | walked as well |
| a link | treated as its target |
| a hidden name (``.ipynb_checkpoints``, ``._1.jpg``), a system folder (``__MACOSX``) | skipped |
| a file of another extension, a pipe, a socket, a device | skipped |
| a link to a folder that contains it | skipped: its images are found already |
| a file with one of :data:`UNREAD` | error: the image would be lost |
| an unreadable folder, a broken link | error: a class or images would be lost |

Files are opened later, when their samples are read.
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
ARRAYS = ".npy"
# Image formats that Pillow alone cannot read.
UNREAD = (
    *(".heic", ".heif", ".avif", ".jxl", ".svg", ".exr", ".dcm"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"),
)
# System folders of macOS archives, network drives, Windows and ext4.
_SYSTEM = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information"}
_SYSTEM |= {"lost+found"}


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name does not belong to the data."""
    return name.startswith(".") or name in _SYSTEM


class Skipped:
    """Counts what was skipped, by kind and by name or extension."""

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
    """Finds the images below one root, and counts what it skips.

    Args:
        mode: ``data.mode``.

    Attributes:
        skipped: what was skipped so far.
    """

    def __init__(self, root: str, mode: str | int = "RGB"):
        self.root = root.rstrip("/") or "/"
        self.extensions = EXTENSIONS if isinstance(mode, str) else (*EXTENSIONS, ARRAYS)
        self.skipped = Skipped()

    def images(self, folder: str) -> list[str]:
        """Sorted paths of all images in a folder; those of its sub-folders come last.

        Raises:
            DataError: see the table.
        """
        found, folders = self.entries(folder)
        for inner in folders:
            found += self.images(inner)
        return found

    def entries(self, folder: str) -> tuple[list[str], list[str]]:
        """Sorted paths of the (images, sub-folders) directly in a folder.

        Raises:
            DataError: see the table.
        """
        images: list[str] = []
        folders: list[str] = []
        try:
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    kind = self._classify(entry)
                    if kind is not None:
                        (images if kind == "image" else folders).append(entry.path)
        except OSError as error:
            raise DataError(
                f"cannot read {error.filename or folder}: {error.strerror}; its images would be "
                "missing: make it readable, or remove it"
            ) from error
        return images, folders

    def _classify(self, entry: os.DirEntry) -> str | None:
        """``"image"``, ``"folder"``, or None for what is skipped."""
        extension = os.path.splitext(entry.name)[1].lower()
        if is_hidden(entry.name):
            self.skipped.add("hidden", entry.name)
        elif entry.is_dir():
            if not entry.is_symlink() or not self._leads_back(entry.path):
                return "folder"
            self.skipped.add("links to a folder around them", entry.path)
        elif not entry.is_file():
            if entry.is_symlink() and not os.path.exists(entry.path):
                raise DataError(
                    f"the link {entry.path} is broken, its target {os.readlink(entry.path)} is "
                    "missing: restore the target, or remove the link"
                )
            self.skipped.add("special files", entry.name)
        elif extension in self.extensions:
            return "image"
        elif extension in UNREAD:
            raise DataError(
                f"{entry.path}: {extension} images cannot be read: convert them to one of "
                f"{', '.join(self.extensions)}, or remove them"
            )
        else:
            self.skipped.add("files that are not images", extension or "no extension")
        return None

    def _leads_back(self, link: str) -> bool:
        """Whether a link points to a folder that contains it."""
        target, folder = os.path.realpath(link), link
        while folder != self.root:
            folder = os.path.dirname(folder)
            if os.path.commonpath([os.path.realpath(folder), target]) == target:
                return True
        return False


@functools.lru_cache(maxsize=None)
def warn_once(text: str) -> None:
    """Log a warning once, as one line: a test split is opened at each evaluation."""
    logger.warning(printable(text))


def _counted(names: dict[str, int]) -> list[str]:
    return [f"{name} {count:,}" if count > 1 else name for name, count in names.items()]


def some(names: Sequence[str], shown: int = 4) -> str:
    """The first few names, for a message."""
    return printable(", ".join([*names[:shown], *["..."] * (len(names) > shown)]))
