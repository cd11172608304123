"""Tensors as files describe them: element types, storages, strided views."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Callable

import numpy as np

from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.checkpoint.plain import total

BFLOAT16 = "bfloat16"

# Element types as files store them. NumPy has no bfloat16: its bits are read as uint16.
NUMPY_TYPES: dict[str, np.dtype] = {
    "float64": np.dtype("<f8"),
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    BFLOAT16: np.dtype("<u2"),
    "int64": np.dtype("<i8"),
    "int32": np.dtype("<i4"),
    "int16": np.dtype("<i2"),
    "int8": np.dtype("i1"),
    "uint8": np.dtype("u1"),
    "bool": np.dtype("?"),
}

MAX_DIMENSIONS = 32  # NumPy's own limit
MAX_ELEMENTS = 1 << 48  # NumPy can address so many of any type
# An expanded tensor (stride 0) may have more elements than its storage. A file of a few bytes
# must not declare terabytes that the first copy would then allocate.
MAX_EXPANDED_ELEMENTS = 1 << 20

# Storages may be shared, and zip archives compressed, but weights hardly shrink: a file that grows
# by more than this factor is a decompression bomb.
MAX_GROWTH = 16
MIN_GROWN = 16 << 20  # bytes that any file may grow to


def widen_bfloat16(bits: np.ndarray) -> np.ndarray:
    """The float32 values of bfloat16 bit patterns (uint16, any shape); exact."""
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


@dataclass(eq=False)
class Storage:
    """One contiguous run of elements in a file, shared by the tensors that view it.

    Attributes:
        name: what the file calls it.
        dtype: a key of `NUMPY_TYPES`.
        numel: number of elements.
        fetch: returns the bytes; set by the file's reader, called on first use.
    """

    name: str
    dtype: str
    numel: int
    fetch: Callable[[], bytes | memoryview] = bytes
    _array: np.ndarray | None = field(default=None, repr=False)

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return self.numel * NUMPY_TYPES[self.dtype].itemsize

    def array(self) -> np.ndarray:
        """All elements, [numel], read-only: a view of the file where possible.

        bfloat16 is widened to float32, and an unaligned storage is copied. This happens once, even
        if many tensors share the storage, so that the size of the file limits the memory.
        """
        if self._array is None:
            data = self.fetch()
            if len(data) != self.nbytes:
                raise CheckpointError(
                    f"storage {self.name!r:.80} has {len(data)} bytes where {self.numel} elements "
                    f"of {self.dtype} need {self.nbytes}"
                )
            array = np.frombuffer(data, NUMPY_TYPES[self.dtype])
            if self.dtype == BFLOAT16:
                array = widen_bfloat16(array)
            elif self.dtype == "bool":
                # Any other byte in a bool array is undefined behaviour inside NumPy.
                array = array.view(np.uint8) != 0
            elif not array.flags.aligned:
                array = array.copy()
            array.flags.writeable = False
            self._array = array
        return self._array


@dataclass(eq=False)
class TensorInfo:
    """A tensor that has not been read: a strided view of a storage.

    Attributes:
        storage: holds its elements.
        offset: index of its first element in the storage.
        shape: its dimensions.
        stride: step along each dimension, in elements.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        numbers = (self.offset, *self.shape, *self.stride)
        if len(self.shape) != len(self.stride) or len(self.shape) > MAX_DIMENSIONS:
            raise CheckpointError(
                f"a tensor has {len(self.shape)} dimensions and {len(self.stride)} strides"
            )
        if any(type(number) is not int or not 0 <= number < 2**63 for number in numbers):
            raise CheckpointError("a tensor's offset, shape or stride is not a natural number")
        if self.numel == 0:
            if math.prod(max(dimension, 1) for dimension in self.shape) > MAX_ELEMENTS:
                raise CheckpointError(f"an empty tensor of shape {self.shape}")
            return
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.stride))
        if last >= self.storage.numel:
            raise CheckpointError(
                f"a tensor of shape {self.shape}, stride {self.stride} and offset {self.offset} "
                f"leaves its storage of {self.storage.numel} elements"
            )
        if self.numel > max(self.storage.numel, MAX_EXPANDED_ELEMENTS):
            raise CheckpointError(
                f"a tensor of shape {self.shape} repeats a storage of {self.storage.numel} elements"
            )

    @property
    def dtype(self) -> str:
        """Element type in the file; `array` gives float32 for bfloat16."""
        return self.storage.dtype

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the elements in the file's type, shared or not."""
        return self.numel * NUMPY_TYPES[self.dtype].itemsize

    def array(self) -> np.ndarray:
        """The tensor, read-only; it shares memory with the other views of its storage."""
        elements = self.storage.array()
        if self.numel == 0:
            return np.empty(self.shape, elements.dtype)
        return np.ndarray(
            self.shape,
            elements.dtype,
            buffer=elements,
            offset=self.offset * elements.itemsize,
            strides=tuple(step * elements.itemsize for step in self.stride),
        )


def check_growth(tree: Any, stored: int) -> None:
    """Compare the size of a tree's tensors, counted each time they occur, with the stored bytes.

    Args:
        stored: bytes of all files.

    Raises:
        CheckpointError: the tensors are many times larger.
    """
    grown = total(tree, lambda leaf: leaf.nbytes if type(leaf) is TensorInfo else 0)
    if grown > max(MAX_GROWTH * stored, MIN_GROWN):
        raise CheckpointError(f"its tensors take {grown:,} bytes, but only {stored:,} are stored")


def contiguous(storage: Storage, shape: tuple[int, ...]) -> TensorInfo:
    """The whole `storage` as a tensor in row-major order."""
    stride = []
    step = 1
    for dimension in reversed(shape):
        stride.append(step)
        step *= max(dimension, 1)
    return TensorInfo(storage, 0, tuple(shape), tuple(reversed(stride)))
