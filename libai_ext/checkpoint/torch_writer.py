"""Write files that `torch.load(weights_only=True)` opens, without PyTorch.

The format is the zip one, which PyTorch 1.6 and later read. Equal weights give equal bytes.
Source: `torch/serialization.py` and `caffe2/serialize/inline_container.cc`.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections import OrderedDict
from typing import Any, BinaryIO

import numpy as np

from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.checkpoint.files import writing
from libai_ext.checkpoint.pickle_writer import (
    CALL_ORDERED_DICT,
    PROTOCOL,
    global_name,
    integer,
    integers,
    text,
)
from libai_ext.checkpoint.tensors import BFLOAT16, NUMPY_TYPES
from libai_ext.checkpoint.torch_objects import STORAGE_TYPES
from libai_ext.files.atomic import atomic_file

FOLDER = "archive"
ALIGNMENT = 64
LOCAL_HEADER_SIZE = 30
CHUNK = 1 << 18  # small enough to stay in the cache from the checksum to the write
STORAGE_NAMES = {
    NUMPY_TYPES[dtype]: name for name, dtype in STORAGE_TYPES.items() if dtype != BFLOAT16
}


def save(tree: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write nested dictionaries of arrays as a `.pth` file, atomically.

    Args:
        tree: dict or OrderedDict with text keys; its values are arrays (float16/32/64, int8/16/32/
            64, uint8, bool; any strides), numbers, text, None, or dictionaries of the same.
        path: the file; replaced when the new one is complete and on disk.

    Raises:
        CheckpointError: the format cannot hold a value, or writing fails.
    """
    pickler = _Pickler()
    try:
        pickle = pickler.dump(tree)
    except CheckpointError as error:
        raise CheckpointError(f"{os.fspath(path)}: {error}") from None
    with writing(path), atomic_file(path) as temporary:
        _write(temporary, pickle, pickler.arrays)


def _write(path: str, pickle: bytes, arrays: list[np.ndarray]) -> None:
    with open(path, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, file, "data.pkl", pickle)
        _add(archive, file, ".format_version", b"1")
        _add(archive, file, ".storage_alignment", str(ALIGNMENT).encode())
        _add(archive, file, "byteorder", b"little")
        for key, array in enumerate(arrays):
            _add(archive, file, f"data/{key}", _little_endian_bytes(array))
        _add(archive, file, "version", b"3\n")


def _little_endian_bytes(array: np.ndarray) -> memoryview:
    array = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
    return array.reshape(-1).view(np.uint8).data


def _add(archive: zipfile.ZipFile, file: BinaryIO, name: str, content: bytes | memoryview) -> None:
    """Append an entry whose content is aligned, so that it can be mapped."""
    info = zipfile.ZipInfo(f"{FOLDER}/{name}")
    info.file_size = len(content)
    extra_header = struct.calcsize("<2sH")
    start = file.tell() + LOCAL_HEADER_SIZE + len(info.filename) + extra_header
    padding = -start % ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    with archive.open(info, "w") as entry:
        for start in range(0, len(content), CHUNK):
            entry.write(content[start : start + CHUNK])


class _Pickler:
    """Emits the opcodes that `torch.save` emits for dictionaries of tensors (protocol 2)."""

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []

    def dump(self, tree: dict[str, Any]) -> bytes:
        return PROTOCOL + self._value(tree) + b"."

    def _value(self, value: Any) -> bytes:
        if isinstance(value, np.ndarray):
            return self._tensor(value)
        if isinstance(value, dict):
            start = CALL_ORDERED_DICT if isinstance(value, OrderedDict) else b"}"
            items = b"".join(self._key(key) + self._value(item) for key, item in value.items())
            return start + b"(" + items + b"u"
        if value is None or isinstance(value, bool):
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        if isinstance(value, int):
            return integer(value)
        if isinstance(value, float):
            return b"G" + struct.pack(">d", value)
        if isinstance(value, str):
            return text(value)
        raise CheckpointError(f"a {type(value).__name__} cannot be written to a PyTorch file")

    def _key(self, key: Any) -> bytes:
        if not isinstance(key, str):
            raise CheckpointError(f"a key is {type(key).__name__}, not text")
        return text(key)

    def _tensor(self, array: np.ndarray) -> bytes:
        storage = STORAGE_NAMES.get(array.dtype.newbyteorder("<"))
        if storage is None:
            raise CheckpointError(f"arrays of {array.dtype} cannot be written to a PyTorch file")
        key = str(len(self.arrays))
        self.arrays.append(array)
        strides = np.cumprod((1, *array.shape[:0:-1]))[::-1] if array.ndim else ()
        persistent_id = (
            text("storage")
            + global_name("torch", storage)
            + text(key)
            + text("cpu")
            + integer(array.size)
        )
        arguments = (
            b"(" + persistent_id + b"tQ" + integer(0) + integers(array.shape)
            + integers(strides) + b"\x89" + CALL_ORDERED_DICT
        )  # fmt: skip
        return global_name("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"tR"
