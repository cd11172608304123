"""Put the native kernels in the place of OneFlow's own."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Status:
    """What became of the native kernels."""

    loaded: bool
    message: str  # one line for the log


_status: Status | None = None
_library: ctypes.CDLL | None = None


def is_loaded() -> bool:
    """Whether ops on CPU run on the native kernels."""
    return _status is not None and _status.loaded


def library() -> ctypes.CDLL | None:
    """The loaded library, for the functions in it that are no kernels of OneFlow's."""
    return _library


def bfloat16_instructions() -> str:
    """The CPU's instructions for products of bfloat16 that the kernels are compiled with: "AMX",
    "AVX-512", or an empty text for none."""
    return "" if _library is None else _library.libai_ext_bfloat16_instructions().decode()


def use_bfloat16_products(on: bool) -> None:
    """Say whether all products of float32 matrices on CPU, from now on, round both factors to
    bfloat16; sums stay float32. Call it between runs: it holds for the whole process.

    Raises:
        RuntimeError: there are no instructions for it.
    """
    if on and not bfloat16_instructions():
        raise RuntimeError("no instructions for products of bfloat16")
    if _library is not None:
        _library.libai_ext_use_bfloat16_products(ctypes.c_int64(on))


def load() -> Status:
    """Build the kernels if needed and register them. Call right after `import oneflow`.

    Without a compiler, or with `LIBAI_EXT_NATIVE=0`, nothing changes and the status says so. A
    second call does nothing and returns the first one's status.

    Raises:
        RuntimeError: OneFlow has made a tensor, run an op or seeded a generator already. It keeps
            pointers to the kernels it has looked up, and new ones would leave those dangling.
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
    if library.libai_ext_stream_count() > 0:
        raise RuntimeError(
            "libai_ext.kernels.load() came too late: call it right after `import oneflow`, before "
            "any tensor is made, any op run and any generator seeded"
        )
    message = ctypes.create_string_buffer(1024)
    if library.libai_ext_register(message, ctypes.c_int64(len(message))) != 0:
        # Some kernels may be registered by now: no state to go on from.
        raise RuntimeError(f"OneFlow refused the native kernels: {message.value.decode()}")
    global _library
    _library = library
    return Status(True, done)
