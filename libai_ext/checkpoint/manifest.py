"""The list of a checkpoint's files and checksums: written last, verified on load.

One line per file: CRC-32 in hexadecimal, size in bytes, path. CRC-32 detects damage by disks, not
intended changes.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.files.regular import open_regular, read_regular

MANIFEST = "manifest"
MAX_BYTES = 64 << 20
_BLOCK = 1 << 22


def write(folder: Path) -> None:
    """List all files below ``folder`` in its manifest."""
    lines = [_line(folder, path) for path in _files(folder)]
    (folder / MANIFEST).write_text("".join(lines), encoding="utf-8")


def verify(folder: Path, part: str | None = None) -> None:
    """Compare ``folder`` with its manifest.

    Args:
        part: a folder in it: only its files are compared. None: all.

    Raises:
        CheckpointError: a file is missing, unexpected, unreadable or changed.
    """
    listed = {}
    for line in _read(folder):
        path = line.split(" ", 2)[-1].rstrip("\n")
        listed[path] = line
    present = set(_files(folder))
    for path in sorted(listed.keys() | present):
        if part is not None and not path.startswith(f"{part}/"):
            continue
        file = folder / path
        if path not in listed:
            raise CheckpointError(f"{file}: not listed in {MANIFEST}")
        if path not in present:
            raise CheckpointError(f"{file}: the file is missing")
        try:
            line = _line(folder, path)
        except OSError as error:
            raise CheckpointError(f"{file}: {error.strerror}") from None
        if line != listed[path]:
            raise CheckpointError(f"{file}: not what was written (size or checksum differs)")


def verify_part(folder: str | os.PathLike[str], part: str) -> None:
    """As :func:`verify`, if ``folder`` has a manifest: LiBai's own checkpoints have none."""
    if os.path.lexists(os.path.join(folder, MANIFEST)):
        verify(Path(folder), part)


def _read(folder: Path) -> list[str]:
    try:
        content = read_regular(folder / MANIFEST, MAX_BYTES)
        lines = content.decode("utf-8").splitlines(keepends=True)
    except OSError as error:
        raise CheckpointError(f"{folder / MANIFEST}: {error.strerror}") from None
    except UnicodeDecodeError:
        lines = []
    if not lines:
        raise CheckpointError(f"{folder / MANIFEST}: not a list of files")
    return lines


def _files(folder: Path) -> list[str]:
    """Paths relative to ``folder``, without the manifest."""
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in files if path != MANIFEST)


def _line(folder: Path, path: str) -> str:
    checksum = 0
    size = 0
    with open_regular(os.path.join(folder, path)) as file:
        while block := file.read(_BLOCK):
            checksum = zlib.crc32(block, checksum)
            size += len(block)
    return f"{checksum:08x} {size} {path}\n"
