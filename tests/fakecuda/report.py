"""What the processes of one rank did with the device."""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

import numpy as np
from fakecuda.symbols import Symbols, demangle

# struct Counter of device/device.cpp.
_COUNTER = np.dtype(
    [("key", "<u8"), ("calls", "<u8"), ("bytes", "<u8"), ("kind", "S16"), ("name", "S88")]
)
_WAITS = (
    "cudaDeviceSynchronize",
    "cudaStreamSynchronize",
    "cudaEventSynchronize",
    "cudaMemcpy",
    "cudaMemcpyAsync to pageable memory",
)


class Count(NamedTuple):
    calls: int
    bytes: int


class Report:
    """Numbers since the start of a run, or between two runs: ``longer - shorter``.

    Attributes:
        kernels: C++ name -> launches.
        calls: of CUDA's functions, name -> how often; of matrix products and collectives also with
            the element type, as ``cublasGemmEx half``.
        copies: ``h2d``, ``d2h``, ``d2d``, ``h2h`` -> :class:`Count`; from the addresses.
        h2d, d2h: ``pinned`` and ``pageable`` host memory -> :class:`Count` of these copies.
        waits: calls by which the host waits for the device, name -> how often.
        queries: calls of ``cudaEventQuery``.
        collectives: NCCL's function -> :class:`Count`; bytes are those of one rank's part: that it
            sends, or gets by a reduce-scatter.
        collective_launches: how often NCCL starts work on the device; the calls of a group are
            one start.
        used, peak: device -> bytes allocated at the end, and at most.
        allocations: ``device`` and ``pinned`` memory -> :class:`Count`.
        finite_checks: answers of the loss scaler's check, ``finite`` and ``overflow`` -> steps.
        unimplemented: functions that were called and do not exist here -> how often.
        forked: CUDA's functions that a forked process called -> how often.
    """

    def __init__(self, counts: dict[str, dict[str, Count]], engine):
        self._counts, self._engine = counts, engine
        self.copies, self.h2d, self.d2h = (self._kind(kind) for kind in ("copy", "h2d", "d2h"))
        self.collectives, self.allocations = self._kind("collective"), self._kind("allocation")
        self.collective_launches = self._calls("launch").get("nccl", 0)
        self.calls, self.finite_checks = self._calls("call"), self._calls("finite_check")
        self.unimplemented, self.forked = self._calls("unimplemented"), self._calls("forked")
        self.used, self.peak = self._bytes("used"), self._bytes("peak")
        self.waits = {name: self.calls[name] for name in _WAITS if name in self.calls}
        self.queries = self.calls.get("cudaEventQuery", 0)

    @functools.cached_property
    def kernels(self) -> dict[str, int]:
        launches = {int(offset): calls for offset, calls in self._calls("kernel").items()}
        names = _symbols(self._engine).names(list(launches))
        return {demangle(names[offset]): calls for offset, calls in launches.items()}

    def launches(self, fragment: str, element: str | None = None) -> int:
        """Launches of the kernels that have ``fragment`` in their names.

        Args:
            element: ``half``, ``float``, ...: the first element type in the name; of a cast that is
                the one it makes.
        """
        return sum(
            calls
            for name, calls in self.kernels.items()
            if fragment in name and element in (None, _element(name))
        )

    def __sub__(self, other: Report) -> Report:
        """Counts of this run less those of a shorter one; ``used`` and ``peak`` as well."""
        counts: dict[str, dict[str, Count]] = {}
        for kind, names in self._counts.items():
            before = other._counts.get(kind, {})
            for name, count in names.items():
                pair = zip(count, before.get(name, Count(0, 0)))
                counts.setdefault(kind, {})[name] = Count(*(a - b for a, b in pair))
        return Report(counts, self._engine)

    def _kind(self, kind: str) -> dict[str, Count]:
        return self._counts.get(kind, {})

    def _calls(self, kind: str) -> dict[str, int]:
        return {name: count.calls for name, count in self._kind(kind).items()}

    def _bytes(self, kind: str) -> dict[int, int]:
        return {int(name): count.bytes for name, count in self._kind(kind).items()}


def read(files, engine) -> Report:
    """The sum of the counters that the processes of a rank have left."""
    total: dict[str, dict[str, Count]] = {}
    for file in files:
        counters = np.fromfile(file, _COUNTER)
        for _, calls, size, kind, name in counters[counters["key"] != 0].tolist():
            names = total.setdefault(kind.decode(), {})
            before = names.get(name.decode(), Count(0, 0))
            names[name.decode()] = Count(before.calls + calls, before.bytes + size)
    return Report(total, engine)


@functools.lru_cache(maxsize=1)
def _symbols(engine) -> Symbols:
    return Symbols(engine)


def _element(name: str) -> str | None:
    found = re.search(r"\b(?:__)?(half|float|double|long|int|bool)\b", name)
    return found and found[1]
