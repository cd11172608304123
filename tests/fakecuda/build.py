"""Compiles the device and finds the functions of OneFlow's library that it takes the place of."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fakecuda.symbols import Symbols

from libai_ext.kernels.build import OneFlowWheel, cache_dir, find_compiler

SOURCES = Path(__file__).parent / "device"
_LIBRARIES = ("cublas", "cudnn", "curand", "cufft", "cupti", "nccl", "npp", "nvjpeg")
# Kernels of the loss scaler's finite check, and those that add its counts (each l: an int64 input).
_FINITE_CHECK = re.compile(r"22MultiCountNotFiniteGpuI|12ApplyGenericI.*10AddFunctorIJ(l+)EEE")
_WORLD_SIZE = "_ZN7oneflow16GlobalProcessCtx9WorldSizeEv"


@dataclass(frozen=True)
class Build:
    """The compiled device.

    Attributes:
        library: to be loaded before the engine. ``places.json`` beside it says where the engine's
            functions are: see ``inject/fake_device.py``.
        engine: OneFlow's library.
    """

    library: Path
    engine: Path


def build() -> Build:
    """Build it, unless it is in the cache.

    Raises:
        RuntimeError: there is no C++ compiler, or it failed.
    """
    compiler = find_compiler()
    wheel = OneFlowWheel.find()
    engine = wheel.libraries / wheel.library("liboneflow-*.so")
    digest = hashlib.sha256(str(engine.resolve()).encode())
    for source in sorted([*SOURCES.iterdir(), Path(__file__)]):
        digest.update(source.read_bytes())
    folder = cache_dir() / f"fakecuda-{digest.hexdigest()[:12]}"
    if not folder.exists():
        if compiler is None:
            raise RuntimeError(
                "the CUDA device of the tests needs a C++ compiler: install one (`apt-get install "
                "g++`) or name one in $CXX"
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="building-") as work:
            made = Path(work, "made")
            made.mkdir()
            _make(made, engine, wheel, compiler)
            try:
                os.rename(made, folder)
            except OSError:  # another process was faster
                if not folder.exists():
                    raise
    return Build(folder / "libfakecuda.so", engine)


def _make(folder: Path, engine: Path, wheel: OneFlowWheel, compiler: str) -> None:
    symbols = Symbols(engine)
    runtime = {**symbols.functions("cuda"), **symbols.functions("__cudaP")}
    # They need no device and are right as they are.
    for name in ("cudaGetErrorString", "cudaGetErrorName", "cudaCreateChannelDesc"):
        runtime.pop(name, None)
    checks = [
        (offset, len(found[1] or ""))
        for name, (offset, _) in symbols.functions("_ZN7oneflow").items()
        for found in _FINITE_CHECK.finditer(name)
    ]
    world_size = symbols.functions(_WORLD_SIZE)[_WORLD_SIZE]
    places = dict(runtime=runtime, finite_checks=checks, world_size=world_size)
    places["engine"] = str(engine.resolve())
    # Resolved: the cache outlives a checkout that reaches the wheel by a link.
    places["module"] = str(next(wheel.include.parent.glob("_oneflow_internal*.so")).resolve())
    (folder / "places.json").write_text(json.dumps(places))
    weak = folder / "weak.cpp"
    weak.write_text(_weak(name for prefix in _LIBRARIES for name in symbols.wanted(prefix)))
    _compile(compiler, [*SOURCES.glob("*.cpp"), weak], folder / "libfakecuda.so")


def _weak(names) -> str:
    """A function for each name that counts itself as not implemented; one of the same name in
    the sources wins."""
    lines = [
        f'extern "C" __attribute__((weak)) int {name}() '
        f'{{ return fakecuda::unimplemented("{name}"); }}'
        for name in names
    ]
    return "\n".join(['#include "device.h"', *lines, ""])


def _compile(compiler: str, sources, library: Path) -> None:
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Wextra", f"-I{SOURCES}"]
    command = [compiler, *flags, *map(str, sources), "-o", str(library), "-lpthread"]
    result = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"the CUDA device did not compile: {result.stderr}")
