"""Replace OneFlow's own kernels by the native ones."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Status:
    """Whether the native kernels are loaded, and why."""

    loaded: bool
    message: str  # one line for the log


# Functions of the library, and what happens without each.
_GRAPH_REPAIRS = {
    "libai_ext_share_graph_memory": "graphs share no memory, and those that accumulate gradients "
    "may change parameters too early",
    "libai_ext_end_after_begin": "a short step of a graph may crash the process",
}

_status: Status | None = None
_library: ctypes.CDLL | None = None


def is_loaded() -> bool:
    """Whether ops on CPU run on the native kernels."""
    return _status is not None and _status.loaded


def library() -> ctypes.CDLL | None:
    """The loaded library, for its functions that are not OneFlow kernels."""
    return _library


def bfloat16_instructions() -> str:
    """The CPU instructions that the kernels use for bfloat16 products: "AMX", "AVX-512", or an
    empty text for none."""
    return "" if _library is None else _library.libai_ext_bfloat16_instructions().decode()


def use_bfloat16_products(on: bool) -> None:
    """From now on, all products of float32 matrices on CPU round both factors to bfloat16, or not;
    sums stay float32. Call it between runs: it holds for the whole process.

    Raises:
        RuntimeError: the CPU has no instructions for it.
    """
    if on and not bfloat16_instructions():
        raise RuntimeError("no instructions for products of bfloat16")
    if _library is not None:
        _library.libai_ext_use_bfloat16_products(ctypes.c_int64(on))


def sleep_in_waits() -> bool:
    """From now on, OneFlow's scheduler sleeps in long waits. Call it in runs on CPU: it would start
    a GPU's kernels later.

    Returns:
        False if this build of OneFlow is another one, so that it cannot be done.
    """
    return _library is None or _library.libai_ext_sleep_in_waits() != 0


def load() -> Status:
    """Build the kernels if needed and register them. Call right after `import oneflow`.

    Without a compiler, or with `LIBAI_EXT_NATIVE=0`, nothing changes and the status says so. A
    second call does nothing and returns the first one's status.

    Raises:
        RuntimeError: OneFlow has already made a tensor, run an op or seeded a generator. It keeps
            pointers to the kernels it has used; after new ones they would be invalid.
    """
    global _status
    if _status is None:
        _status = _load()
    return _status


def _load() -> Status:
    if os.environ.get("LIBAI_EXT_NATIVE", "1") == "0":
        return Status(False, "native kernels: off (LIBAI_EXT_NATIVE=0)")
    # It loads the libraries that the kernels are linked to.
    import oneflow  # noqa: F401

    # Not at the top: `python -m libai_ext.kernels.build` imports this package first.
    from libai_ext.kernels.build import BuildError, build

    try:
        path, done = build()
        library = ctypes.CDLL(str(path))
    except (BuildError, OSError) as error:
        return Status(False, f"native kernels: off: {error}")
    library.libai_ext_stream_count.restype = ctypes.c_int64
    library.libai_ext_bfloat16_instructions.restype = ctypes.c_char_p
    library.libai_ext_sleep_in_waits.restype = ctypes.c_int64
    if library.libai_ext_stream_count() > 0:
        raise RuntimeError(
            "libai_ext.kernels.load() came too late: call it right after `import oneflow`, before "
            "any tensor is made, any op run and any generator seeded"
        )
    message = ctypes.create_string_buffer(1024)
    if library.libai_ext_register(message, ctypes.c_int64(len(message))) != 0:
        # Some kernels may be registered already, so the run cannot continue.
        raise RuntimeError(f"OneFlow refused the native kernels: {message.value.decode()}")
    missing = [without for name, without in _GRAPH_REPAIRS.items() if not library[name]()]
    if missing:
        done += f"; but this build of OneFlow is another one: {'; '.join(missing)}"
    global _library
    _library = library
    return Status(True, done)
