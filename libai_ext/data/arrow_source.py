"""Images in Arrow files, as ``datasets.save_to_disk`` writes them."""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Any, Iterator

import numpy as np

from libai_ext.data import table_columns
from libai_ext.data.decode import Decoder
from libai_ext.data.fingerprint import of_files, of_labels
from libai_ext.data.table_columns import Columns
from libai_ext.data.tar_shards import TarShards
from libai_ext.errors import DataError
from libai_ext.files.regular import open_regular

_FILE_FORMAT = b"ARROW1"  # else a stream


class ArrowImages(TarShards):
    """The rows of all files, one file after the other. :mod:`libai_ext.data.table_columns` says
    which files, columns and classes are used.

    The files are mapped into memory only while the places of the images are looked up, at the
    start. Later, images are read by their offset, as those of tar shards: a file that is cut short
    is an error, not a bus error.

    Args:
        root: ``PATH`` or ``PATH?image=COLUMN&label=COLUMN``.
        mode, decoding: arguments of :class:`Decoder`.

    Raises:
        DataError: a file is missing, damaged, compressed or without such columns, or the files
            differ in them.
    """

    def __init__(self, root: str, mode: str | int = "RGB", **decoding):
        path, options = table_columns.split_options(root)
        self._root = f"arrow:{root}"
        self.shards = table_columns.table_files(path, ".arrow")
        self.decode = Decoder(mode, **decoding)
        self._files: tuple[int, OrderedDict] = (os.getpid(), OrderedDict())
        offsets, sizes, labels = [], [], []
        self.shard_sizes: list[int] = []
        self.columns: Columns | None = None
        for file in self.shards:
            columns, rows, part = self._scan(file, options)
            if self.columns not in (None, columns):
                raise DataError(f"{file} has other columns or classes than {self.shards[0]}")
            self.columns = columns
            self.shard_sizes.append(sum(len(offset) for offset, _ in rows))
            offsets += [offset for offset, _ in rows]
            sizes += [size for _, size in rows]
            labels += part
        if not sum(self.shard_sizes):
            raise DataError(f"{path} holds no rows")
        self._shard = np.repeat(np.arange(len(self.shards)), self.shard_sizes)
        self._first = np.searchsorted(self._shard, np.arange(len(self.shards)))
        self._offset, self._size = np.concatenate(offsets), np.concatenate(sizes)
        assert self.columns is not None
        self.labels, self.classes = table_columns.number_labels(
            labels, self.columns, len(self), path
        )

    @property
    def _arrow(self) -> Any:
        return table_columns.pyarrow(self._root)

    def _scan(self, path: str, options: dict) -> tuple[Columns, list, list]:
        """The columns of a file; offsets and sizes of its images, and labels, in parts."""
        rows, labels = [], []
        try:
            with open_regular(path) as raw:
                start = raw.read(len(_FILE_FORMAT))
            with self._arrow.memory_map(path) as mapped:
                whole = mapped.read_buffer()
                schema, batches = self._batches(whole, start == _FILE_FORMAT)
                columns = table_columns.columns_of(schema, options, path)
                for batch in batches:
                    batch.validate()
                    image = batch.column(columns.image)
                    rows.append(self._places(image, whole, path))
                    if columns.label is not None:
                        label = batch.column(columns.label)
                        label.validate(full=True)
                        # A copy: the mapping ends.
                        labels.append(self._arrow.concat_arrays([label, label[:0]]))
        except (OSError, self._arrow.ArrowException) as error:
            why = getattr(error, "strerror", None) or error
            raise DataError(f"cannot read {path}: {why}") from error
        return columns, rows, labels

    def _batches(self, whole: Any, is_file: bool) -> tuple[Any, Iterator]:
        source = self._arrow.BufferReader(whole)
        if not is_file:
            reader = self._arrow.ipc.open_stream(source)
            return reader.schema, iter(reader)
        reader = self._arrow.ipc.open_file(source)
        return reader.schema, (reader.get_batch(k) for k in range(reader.num_record_batches))

    def _places(self, image: Any, whole: Any, path: str) -> tuple[np.ndarray, np.ndarray]:
        """Offsets in the file and sizes, int64 [n]; null is 0 bytes."""
        types = self._arrow.types
        if types.is_struct(image.type):
            names = [image.type.field(k).name for k in range(image.type.num_fields)]
            image = image.flatten()[names.index("bytes")]
        if not len(image):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        kind = np.int64 if types.is_large_binary(image.type) else np.int32
        _, starts, data = image.buffers()
        length = data.size if data else 0
        first = data.address - whole.address if length else 0
        if not 0 <= first <= whole.size - length:
            raise DataError(f"{path} is compressed: write it again without compression")
        bounds: np.ndarray = np.frombuffer(starts, kind)
        ends = bounds[image.offset : image.offset + len(image) + 1].astype(np.int64)
        sizes = np.diff(ends)
        if ends[0] < 0 or (sizes < 0).any() or ends[-1] > length:
            raise DataError(f"{path} is damaged: images outside of it")
        there = image.is_valid().to_numpy(zero_copy_only=False)
        return ends[:-1] + first, np.where(there, sizes, 0)

    def identity(self) -> Iterator[bytes]:
        """See :mod:`libai_ext.data.fingerprint`."""
        yield from of_labels(self)
        yield from of_files(self.shards)
        yield self._size.tobytes()

    def name(self, index: int) -> str:
        """The file and the row in it."""
        shard = int(self._shard[index])
        return f"{self.shards[shard]}:{index - self._first[shard]}"
