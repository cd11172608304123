"""Read and write `.safetensors` files as NumPy arrays.

The safetensors library checks the file. Its NumPy interface has no bfloat16 and copies every
tensor, so here the arrays are views of a memory map, as for a `.pth` file.
"""

from __future__ import annotations

import json
import math
import os
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.checkpoint.files import map_file, writing
from libai_ext.checkpoint.tensors import Storage, TensorInfo, contiguous
from libai_ext.files.atomic import atomic_file

LENGTH_BYTES = 8
MAX_HEADER = 16 << 20
METADATA = "__metadata__"
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def inspect(path: str | os.PathLike[str]) -> dict[str, TensorInfo]:
    """Names, shapes, types and positions of the tensors; no tensor is read.

    Raises:
        CheckpointError: the file is not a safetensors file, or is damaged.
    """
    header, view = _open(os.fspath(path))
    header.pop(METADATA, None)
    try:
        return {name: _tensor(name, entry, view) for name, entry in header.items()}
    except CheckpointError as error:
        raise CheckpointError(f"{os.fspath(path)}: {error}") from None


def metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The texts in the header of a file.

    Raises:
        CheckpointError: the file is not a safetensors file, or is damaged.
    """
    return _open(os.fspath(path))[0].get(METADATA) or {}


def _open(path: str) -> tuple[dict[str, Any], memoryview]:
    """The header, checked by the library, and the bytes after it."""
    data = map_file(path)
    header_end = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
    if header_end > min(len(data), MAX_HEADER):
        raise CheckpointError(f"{path}: not a safetensors file, or cut short")
    try:
        with safe_open(path, "np"):
            header = json.loads(data[LENGTH_BYTES:header_end])
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    return header, memoryview(data)[header_end:]


def _tensor(name: str, entry: dict[str, Any], view: memoryview) -> TensorInfo:
    """The tensor of an entry that the library has checked."""
    dtype = DTYPES.get(entry["dtype"])
    if dtype is None:
        raise CheckpointError(f"{name:.80} has the type {entry['dtype']}, which is not read")
    start, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    storage = Storage(name, dtype, math.prod(shape), lambda: view[start:end])
    return contiguous(storage, shape)


def load(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Every tensor by name: read-only views of the file, bfloat16 widened to float32.

    Raises:
        CheckpointError: the file is not a safetensors file, or is damaged.
    """
    return {name: tensor.array() for name, tensor in inspect(path).items()}


def save(
    tensors: dict[str, np.ndarray],
    path: str | os.PathLike[str],
    metadata: dict[str, str] | None = None,
) -> None:
    """Write arrays by name, atomically, marked as PyTorch's so that transformers opens the file.

    Args:
        metadata: texts for the header.

    Raises:
        CheckpointError: the format has no such type of array, or writing fails.
    """
    with writing(path), atomic_file(path) as temporary:
        try:
            save_file(
                {name: np.asarray(array, order="C") for name, array in tensors.items()},
                temporary,
                metadata={"format": "pt", **(metadata or {})},
            )
        except (SafetensorError, TypeError) as error:
            raise CheckpointError(f"{os.fspath(path)}: {error}") from None
