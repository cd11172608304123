"""Compile the native kernels for this machine, once: `python -m libai_ext.kernels.build`.

The library is in `$LIBAI_EXT_CACHE`, else `$XDG_CACHE_HOME/libai_ext`, else `~/.cache/libai_ext`,
in a directory named after all that it depends on: the source, the compiler, OneFlow, and the
instructions of the CPU. Another machine or version gets another directory.
:mod:`libai_ext.kernels.cache` says which library may be loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from libai_ext.kernels.cache import (
    LIBRARY_NAME,
    Untrusted,
    building,
    cache_dir,
    lock,
    make_private,
    verify,
)

SOURCE_DIR = Path(__file__).resolve().parent.parent / "csrc"
MAX_SECONDS = 600  # of one compilation
_SLOWER = "OneFlow's own CPU kernels are used, several times slower"
# Runs a command and kills the process group when the input ends, that is when the parent has ended.
# A parent-death signal would reach the compiler, but not its children.
_WITH_PARENT = 'exec 3<&0; { read -r _ <&3; kill -9 0; } & "$@" 3<&- </dev/null'

# How the arithmetic is compiled, in the library and under the sanitizers. The flags relax strict
# IEEE arithmetic only where NaN and infinity are not lost.
ARITHMETIC_FLAGS = [
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",  # no function with a vector as an argument is called from outside
]
_PLUGIN_FLAGS = [
    "-fPIC",
    "-shared",
    # OneFlow's half.hpp includes it too late for -march=native.
    "-include",
    "immintrin.h",
    "-D_GLIBCXX_USE_CXX11_ABI=0",  # as the OneFlow wheel is compiled
    "-DHALF_ENABLE_CPP11_USER_LITERALS=0",
]


class BuildError(RuntimeError):
    """The kernels could not be compiled. The message says what to do."""


@dataclass(frozen=True)
class OneFlowWheel:
    """The parts of an installed OneFlow that the compiler and linker need."""

    version: str
    include: Path
    libraries: Path

    @classmethod
    def find(cls) -> OneFlowWheel:
        """Find it without importing it. Raises BuildError if there is none."""
        spec = importlib.util.find_spec("oneflow")
        if spec is None or not spec.submodule_search_locations:
            raise BuildError("oneflow is not installed")
        package = Path(spec.submodule_search_locations[0])
        return cls(
            version=importlib.metadata.version("oneflow"),
            include=package / "include",
            libraries=package.parent / "oneflow.libs",
        )

    def library(self, pattern: str) -> str:
        """The name of a library in the wheel; it contains a hash, so a pattern is needed."""
        found = sorted(self.libraries.glob(pattern))
        if not found:
            raise BuildError(f"no {pattern} in {self.libraries}: not an official OneFlow wheel")
        return found[0].name

    def compile_flags(self) -> list[str]:
        # The folder also holds copies of system headers, so it must come after the system's own.
        folders = [self.include, self.include / "glog-build", self.include / "eigen3"]
        return [flag for folder in folders for flag in ("-idirafter", str(folder))]

    def link_flags(self) -> list[str]:
        names = ["liboneflow-*.so", "libof_protoobj-*.so", "libprotobuf-*.so*"]
        return [
            f"-L{self.libraries}",
            *(f"-l:{self.library(name)}" for name in names),
            # liboneflow does not export glog, which its headers use.
            str(self.include / "glog-build" / "libglog.a"),
            "-Wl,--exclude-libs,ALL",
            f"-Wl,-rpath,{self.libraries}",
            "-Wl,--allow-shlib-undefined",
        ]


def find_compiler() -> str | None:
    """The path of `$CXX` or g++, None if there is none."""
    return shutil.which(os.environ.get("CXX", "g++"))


def _digest(*parts: bytes) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(len(part).to_bytes(8, "little"))
        sha.update(part)
    return sha.hexdigest()[:12]


def _cpu_instructions() -> bytes:
    with open("/proc/cpuinfo", "rb") as info:
        for line in info:
            if line.startswith(b"flags"):
                return line
    return platform.machine().encode()


def _content_key(wheel: OneFlowWheel) -> str:
    """Hash of everything that the library depends on, except the compiler."""
    files = sorted(path for path in SOURCE_DIR.rglob("*") if path.suffix in (".h", ".cpp"))
    source = [
        part
        for path in files
        for part in (path.relative_to(SOURCE_DIR).as_posix().encode(), path.read_bytes())
    ]
    flags = " ".join(ARITHMETIC_FLAGS + _PLUGIN_FLAGS)
    engine = f"{wheel.version} {wheel.library('liboneflow-*.so')} {wheel.libraries}"
    return _digest(engine.encode(), flags.encode(), _cpu_instructions(), *source)


def _compiler_key(compiler: str) -> str:
    try:
        version = subprocess.run(
            [compiler, "--version"], capture_output=True, check=True, timeout=60
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"cannot run the C++ compiler {compiler}: {error}") from error
    return _digest(version)


def _compile(compiler: str, wheel: OneFlowWheel, library: Path, log: Path) -> None:
    command = [
        compiler,
        *ARITHMETIC_FLAGS,
        *_PLUGIN_FLAGS,
        f"-I{SOURCE_DIR / 'shim'}",
        *wheel.compile_flags(),
        str(SOURCE_DIR / "kernels.cpp"),
        *wheel.link_flags(),
        "-o",
        str(library),
    ]
    with open(log, "w") as output:
        output.write(" ".join(command) + "\n")
        output.flush()
        status = _run(command, output)
    if status != 0:
        raise BuildError(f"the native kernels did not compile (see {log}): {_SLOWER}")


def _run(command: list[str], output: IO[str]) -> int:
    """Exit status of a command, which never outlives this process.

    Raises:
        BuildError: it takes longer than :data:`MAX_SECONDS`.
    """
    with subprocess.Popen(
        ["/bin/sh", "-c", _WITH_PARENT, "sh", *command],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            return process.wait(MAX_SECONDS)
        except subprocess.TimeoutExpired:
            raise BuildError(f"{command[0]} took more than {MAX_SECONDS} s: {_SLOWER}") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def build() -> tuple[Path, str]:
    """Build the library unless a valid one exists.

    Returns its path, and a line that says what was done.

    Raises:
        BuildError: there is no compiler, or it failed; the cache is not the user's own.
    """
    try:
        return _build(cache_dir())
    except (OSError, Untrusted) as error:
        raise BuildError(
            f"no place to keep the native kernels ({error}): {_SLOWER}; name another directory, "
            "which only you can write to, in $LIBAI_EXT_CACHE"
        ) from error


def _build(cache: Path) -> tuple[Path, str]:
    wheel = OneFlowWheel.find()
    content = _content_key(wheel)
    compiler = find_compiler()
    if compiler is not None or cache.is_dir():
        make_private(cache)
    if compiler is None:
        return _built_elsewhere(cache, content)
    key = f"{content}-{_compiler_key(compiler)}"
    library = cache / key / LIBRARY_NAME
    if _fault(library) == "":
        return library, f"native kernels: {library}, built before"
    with lock(cache):
        fault = _fault(library)
        if fault == "":
            return library, f"native kernels: {library}, built by another process"
        began = time.monotonic()
        with building(library) as built:
            _compile(compiler, wheel, built, cache / f"{key}.log")
        done = f"native kernels: {library}, built in {time.monotonic() - began:.0f} s"
        return library, f"{done}, again: {fault}" if fault else done


def _fault(library: Path) -> str | None:
    """What is wrong with a library; "" if nothing is, None if it is missing."""
    try:
        verify(library)
    except FileNotFoundError:
        return None
    except Untrusted as error:
        return str(error)
    return ""


def _built_elsewhere(cache: Path, content: str) -> tuple[Path, str]:
    """Find a library for this machine and source whose compiler no longer exists."""
    faults = []
    for library in sorted(cache.glob(f"{content}-*/{LIBRARY_NAME}")):
        fault = _fault(library)
        if fault == "":
            return library, f"native kernels: {library}, built before"
        faults.append(f"{fault}, and ")
    wanted = os.environ.get("CXX", "g++")
    raise BuildError(
        f"{''.join(faults)}no C++ compiler ({wanted}) found: {_SLOWER}; install one "
        "(`apt-get install g++`) or name one in $CXX"
    )


def main() -> int:
    try:
        print(build()[1])
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
