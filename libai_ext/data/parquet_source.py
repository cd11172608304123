"""Images in Parquet files, read a group of rows at a time."""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Any, Iterator

import numpy as np

from libai_ext.data import table_columns
from libai_ext.data.decode import MAX_BYTES, BadImage, Decoder
from libai_ext.data.fingerprint import of_files, of_labels
from libai_ext.data.retry import is_unavailable, read_with_retry
from libai_ext.data.table_columns import Columns
from libai_ext.data.walk import warn_once
from libai_ext.errors import DataError
from libai_ext.files.regular import open_regular

# Of one process: bytes of images in groups that were read, and open files.
CACHE_BYTES = 256 << 20
_OPEN_FILES = 16
# Bytes of images in a group. A group is read for one image of it.
_MAX_GROUP, _LARGE_GROUP = 2 << 30, 32 << 20
_AT_ONCE = 16  # rows that are decoded at a time


class ParquetImages:
    """The rows of all files, one file after the other. :mod:`libai_ext.data.table_columns` says
    which files, columns and classes are used.

    The files' own indices and the classes are read at the start, images later, by the group.

    Args:
        root: ``PATH`` or ``PATH?image=COLUMN&label=COLUMN``.
        mode, decoding: arguments of :class:`Decoder`.

    Attributes:
        shard_sizes: rows of each group.

    Raises:
        DataError: a file is missing, damaged or without such columns, or the files differ in them.
    """

    def __init__(self, root: str, mode: str | int = "RGB", **decoding):
        path, options = table_columns.split_options(root)
        self._root = f"parquet:{root}"
        self.paths = table_columns.table_files(path, ".parquet")
        self.decode = Decoder(mode, **decoding)
        self._files: tuple[int, OrderedDict] = (os.getpid(), OrderedDict())
        # Groups that were read, as parts, with their bytes.
        self._groups: OrderedDict[int, tuple[list, int]] = OrderedDict()
        self._held = 0
        self._places: list[tuple[int, int]] = []  # (file, group in it) of each group
        self.shard_sizes: list[int] = []
        labels = []
        for number, file in enumerate(self.paths):
            self.columns, part = self._scan(number, file, options)
            labels += part
        self._ends = np.cumsum(self.shard_sizes)
        if not len(self):
            raise DataError(f"{path} holds no rows")
        self.labels, self.classes = table_columns.number_labels(
            labels, self.columns, len(self), path
        )

    def __getstate__(self):
        return dict(self.__dict__, _files=(-1, OrderedDict()), _groups=OrderedDict(), _held=0)

    @property
    def _arrow(self) -> Any:
        return table_columns.pyarrow(self._root)

    def _scan(self, number: int, path: str, options: dict) -> tuple[Columns, list]:
        """Add the groups of a file; its columns and the parts of its labels."""
        try:
            size, file = os.path.getsize(path), self._open(number)
            meta = file.metadata
            columns = table_columns.columns_of(file.schema_arrow, options, path)
            if number and columns != self.columns:
                raise DataError(f"{path} has other columns or classes than {self.paths[0]}")
            rows = [meta.row_group(group).num_rows for group in range(meta.num_row_groups)]
            if min(rows, default=0) < 0 or sum(rows) > size:
                raise DataError(f"{path}: {sum(rows):,} rows, more than its bytes can hold")
            self._check_groups(path, meta, columns)
            self.shard_sizes += rows
            self._places += [(number, group) for group in range(len(rows))]
            if columns.label is None:
                return columns, []
            labels = file.read([columns.label], use_threads=False).column(columns.label)
            if len(labels) != sum(rows):
                raise DataError(f"{path}: {len(labels):,} classes of {sum(rows):,} rows")
            return columns, labels.chunks
        except (OSError, self._arrow.ArrowException) as error:
            raise DataError(f"cannot read {path}: {_why(error)}") from error

    def _check_groups(self, path: str, meta: Any, columns: Columns) -> None:
        largest = 0
        for group in range(meta.num_row_groups):
            chunks = (meta.row_group(group).column(k) for k in range(meta.num_columns))
            name = (columns.image, f"{columns.image}.bytes")
            sizes = [
                chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in name
            ]
            largest = max([largest, *sizes])
        if largest > _MAX_GROUP:
            raise DataError(
                f"{path} has {largest / 2**30:.1f} GiB of images in a group of rows: write it "
                "again with smaller ones (row_group_size)"
            )
        if largest > _LARGE_GROUP and meta.num_row_groups > 1:
            warn_once(
                f"{path} has up to {largest >> 20} MiB of images in a group of rows, and one image "
                "needs its whole group: in random order this is slow. Write it again with smaller "
                "groups (row_group_size), or as Arrow files (datasets.save_to_disk)"
            )

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """
        Raises:
            BadImage: the row holds no readable image, or its group is damaged.
            DataError: the file cannot be read.
            DataUnavailable: the disk or server did not come back.
        """
        group, row = self._place(index)
        path, name = self.paths[self._places[group][0]], self.name(index)
        try:
            parts = read_with_retry(lambda: self._group(group), path, is_unavailable)
        except (OSError, self._arrow.ArrowException) as error:
            if getattr(error, "errno", None) is not None:
                raise DataError(f"cannot read {path}: {_why(error)}") from error
            raise BadImage(name, f"its group of rows is damaged: {_why(error)}") from error
        part, place = divmod(row, _AT_ONCE)
        if part >= len(parts) or place >= len(parts[part]):
            raise BadImage(name, "its group of rows is damaged: it has fewer rows")
        data = parts[part][place].as_py()
        if data is None or len(data) > MAX_BYTES:
            raise BadImage(name, "it has no bytes" if data is None else "larger than any image")
        return self.decode(data, name), int(self.labels[index])

    def identity(self) -> Iterator[bytes]:
        """See :mod:`libai_ext.data.fingerprint`."""
        yield from of_labels(self)
        yield from of_files(self.paths)

    def name(self, index: int) -> str:
        """The file and the row in it."""
        group, _ = self._place(index)
        file, number = self._places[group]
        first = group - number  # of the file's groups
        before = int(self._ends[first]) - self.shard_sizes[first]
        return f"{self.paths[file]}:{index - before}"

    def _place(self, index: int) -> tuple[int, int]:
        """(group, row in it)."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        group = int(np.searchsorted(self._ends, index, "right"))
        return group, index - int(self._ends[group]) + self.shard_sizes[group]

    def _group(self, group: int) -> list:
        """The images of a group, as arrays of at most :data:`_AT_ONCE` rows."""
        if group not in self._groups:
            number, inner = self._places[group]
            try:
                parts = self._read(self._open(number), inner)
            except OSError:
                self._files[1].pop(number, None)  # a stale file does not recover
                raise
            self._groups[group] = (parts, sum(part.nbytes for part in parts))
            self._held += self._groups[group][1]
            while self._held > CACHE_BYTES and len(self._groups) > 1:
                self._held -= self._groups.popitem(last=False)[1][1]
        self._groups.move_to_end(group)
        return self._groups[group][0]

    def _read(self, file: Any, group: int) -> list:
        parts: list = []
        held = 0
        column, is_struct = self.columns.image, self._arrow.types.is_struct
        if is_struct(file.schema_arrow.field(column).type):
            column += ".bytes"
        batches = file.iter_batches(_AT_ONCE, [group], [column], use_threads=False)
        # Compressed or repeated values may be far larger than the file says.
        for batch in batches:
            array = batch.column(0)
            parts.append(array.flatten()[0] if is_struct(array.type) else array)
            held += parts[-1].nbytes
            if held > _MAX_GROUP:
                raise self._arrow.ArrowInvalid("more bytes than its index says")
        return parts

    def _open(self, number: int) -> Any:
        pid, files = self._files
        if pid != os.getpid():  # a file has one position for all processes
            files = OrderedDict()
            self._files = (os.getpid(), files)
        if number not in files:
            while len(files) >= _OPEN_FILES:
                files.popitem(last=False)
            raw = open_regular(self.paths[number])
            files[number] = self._arrow.parquet.ParquetFile(raw, pre_buffer=False)
        files.move_to_end(number)
        return files[number]


def _why(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__)[:300]
