"""Batches in memory that the data workers share with the training process.

OneFlow's DataLoader makes tensors in the workers. That runs the engine in forked processes, leaves
files in /dev/shm when a rank is killed, and frees each batch by Python code on a thread of the
engine. Here workers make NumPy arrays in anonymous memory; the kernel frees it when the last
process that uses it ends.
"""

from __future__ import annotations

import math
import mmap
import os
from typing import Callable, NamedTuple, Sequence

import numpy as np

from libai_ext.files.anonymous import anonymous_file

# Finished batches that wait, for each worker.
PREFETCH = 2
_ALIGNMENT = 64


class Packed(NamedTuple):
    """The position of a batch in shared memory; this goes through the pipe."""

    worker: int
    slot: int
    size: int
    # Name and (shape, type, offset) of each array.
    arrays: list[tuple[str, tuple]]


class SharedBatches:
    """The shared memory of a loader's workers. Make it before the workers are forked.

    Each worker uses ``PREFETCH + 1`` slots in turn: one is read while the others are filled.

    Args:
        collate: (samples, empty) -> arrays by name, each made by ``empty(shape, dtype)``.
        copy: return copies of the arrays; else they are valid until the next batch is requested.
    """

    def __init__(self, collate: Callable, workers: int, copy: bool = True):
        self.collate = collate
        self.copy = copy
        self.slots = [[_Slot() for _ in range(PREFETCH + 1)] for _ in range(workers)]

    def pack(self, worker: int, number: int, samples: Sequence[dict]) -> Packed:
        """Collate batch ``number`` of a worker into shared memory; called in the worker."""
        turn = number % (PREFETCH + 1)
        slot = self.slots[worker][turn]
        slot.clear()
        arrays = self.collate(samples, slot.empty)
        return Packed(worker, turn, slot.used, list(zip(arrays, slot.places)))

    def unpack(self, packed: Packed) -> dict[str, np.ndarray]:
        """The arrays of a batch; called in the training process."""
        slot = self.slots[packed.worker][packed.slot]
        slot.map(packed.size)
        arrays = {name: slot.array(*place) for name, place in packed.arrays}
        return {name: array.copy() for name, array in arrays.items()} if self.copy else arrays


class _Slot:
    """Memory shared by forked processes; it grows as needed."""

    def __init__(self):
        self.file = anonymous_file("batch")
        self.memory: mmap.mmap | None = None
        self.clear()

    def clear(self) -> None:
        self.used = 0
        self.places: list[tuple] = []

    def empty(self, shape: tuple[int, ...], dtype) -> np.ndarray:
        offset = -(-self.used // _ALIGNMENT) * _ALIGNMENT
        dtype = np.dtype(dtype)
        self.used = offset + math.prod(shape) * dtype.itemsize
        if os.fstat(self.file.fileno()).st_size < self.used:
            os.posix_fallocate(self.file.fileno(), 0, self.used)  # an error where there is no room
        self.map(self.used)
        self.places.append((shape, dtype.str, offset))
        return self.array(*self.places[-1])

    def map(self, size: int) -> None:
        if self.memory is None or len(self.memory) < size:
            self.memory = mmap.mmap(self.file.fileno(), size)

    def array(self, shape: tuple[int, ...], dtype: str, offset: int) -> np.ndarray:
        return np.ndarray(shape, dtype, self.memory, offset)
