"""Puts the CUDA device that does not exist into this process (see ``fakecuda/gpus.py``)."""

from __future__ import annotations

import ctypes
import importlib.abc
import json
import os
import sys


def install_before_oneflow() -> None:
    """Nothing is loaded in a process that does not import OneFlow."""
    sys.meta_path.insert(0, _BeforeOneFlow())


class _BeforeOneFlow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "oneflow":
            sys.meta_path.remove(self)
            _install()


def _install() -> None:
    places = _places()
    library = _library()  # before the engine, so that its cuBLAS etc. are found first
    ctypes.CDLL(places["module"], mode=os.RTLD_LAZY)  # the engine, with what it needs
    base = _base(places["engine"])
    ctypes.c_void_p.in_dll(library, "fakecuda_engine").value = base
    for name, (offset, size) in places["runtime"].items():
        _replace(library, base + offset, size, name)
    for offset, inputs in places["finite_checks"]:
        library.fakecuda_finite_check(ctypes.c_void_p(base + offset), inputs)


def stand_for(ranks: int) -> None:
    """From here on the engine of this process, the only one, takes itself for rank 0 of so many.
    It can compile for them, and run nothing."""
    library, places = _library(), _places()
    ctypes.c_size_t.in_dll(library, "fakecuda_world").value = ranks
    offset, size = places["world_size"]
    _replace(library, _base(places["engine"]) + offset, size, "WorldSize")


def _library() -> ctypes.CDLL:
    return ctypes.CDLL(os.environ["FAKECUDA_LIBRARY"], mode=ctypes.RTLD_GLOBAL)


def _places() -> dict:
    folder = os.path.dirname(os.environ["FAKECUDA_LIBRARY"])
    with open(os.path.join(folder, "places.json")) as file:
        return json.load(file)


def _base(path: str) -> int:
    """Where a library is loaded."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            if line.rstrip().endswith(path):
                return int(line.split("-")[0], 16)
    raise RuntimeError(f"{path} is not loaded")


def _replace(library: ctypes.CDLL, address: int, size: int, name: str) -> None:
    replace = library.fakecuda_replace
    replace.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    replace.restype = ctypes.c_bool
    if not replace(address, size, name.encode()):
        raise RuntimeError(f"cannot replace {name} of {size} bytes")
