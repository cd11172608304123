"""Compile the native kernels for this machine, once: `python -m libai_ext.kernels.build`.

The library lies in `$LIBAI_EXT_CACHE`, else `$XDG_CACHE_HOME/libai_ext`, else
`~/.cache/libai_ext`, in a directory named after all that it depends on: the source, the compiler,
OneFlow, and the instructions of the CPU. Another machine or version therefore gets another one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCE_DIR = Path(__file__).resolve().parent.parent / "csrc"
LIBRARY_NAME = "libai_ext_kernels.so"

# What the arithmetic is compiled with, the same in the library and under the sanitizers. Exceptions
# from strict IEEE arithmetic stop where NaN or infinity would be lost.
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
]
_PLUGIN_FLAGS = [
    "-fPIC",
    "-shared",
    # half.hpp of OneFlow includes it too late for -march=native.
    "-include",
    "immintrin.h",
    "-D_GLIBCXX_USE_CXX11_ABI=0",  # as the OneFlow wheel is compiled
    "-DHALF_ENABLE_CPP11_USER_LITERALS=0",
]


class BuildError(RuntimeError):
    """The kernels could not be compiled. The message says what to do."""


@dataclass(frozen=True)
class OneFlowWheel:
    """The parts of an installed OneFlow to compile and link with."""

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
        """The name of a library of the wheel; it carries a hash, hence the pattern."""
        found = sorted(self.libraries.glob(pattern))
        if not found:
            raise BuildError(f"no {pattern} in {self.libraries}: not an official OneFlow wheel")
        return found[0].name

    def compile_flags(self) -> list[str]:
        # The folder holds copies of system headers too, so it must come after the system's own.
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


def cache_dir() -> Path:
    """The directory that holds all built libraries."""
    if "LIBAI_EXT_CACHE" in os.environ:
        return Path(os.environ["LIBAI_EXT_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "libai_ext"


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
    """Names all that the library depends on, except the compiler."""
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
        version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"cannot run the C++ compiler {compiler}: {error}") from error
    return _digest(version)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Held by one process at a time; ends with the process, however it ends."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


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
        result = subprocess.run(command, check=False, stdout=output, stderr=subprocess.STDOUT)
    if result.returncode != 0:
        raise BuildError(
            f"the native kernels did not compile (see {log}): "
            "OneFlow's own CPU kernels are used, several times slower"
        )


def build() -> tuple[Path, str]:
    """Build the library unless it is built already.

    Returns its path, and a line that says what was done.

    Raises:
        BuildError: there is no compiler, or it failed.
    """
    wheel = OneFlowWheel.find()
    content = _content_key(wheel)
    cache = cache_dir()
    compiler = find_compiler()
    if compiler is None:
        # Built where there was a compiler, for the very same machine and source.
        for library in sorted(cache.glob(f"{content}-*/{LIBRARY_NAME}")):
            return library, f"native kernels: {library}, built before"
        wanted = os.environ.get("CXX", "g++")
        raise BuildError(
            f"no C++ compiler ({wanted}) found: OneFlow's own CPU kernels are used, several times "
            "slower; install one (`apt-get install g++`) or name one in $CXX"
        )
    key = f"{content}-{_compiler_key(compiler)}"
    library = cache / key / LIBRARY_NAME
    if library.exists():
        return library, f"native kernels: {library}, built before"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _lock(cache / "build.lock"):
            if library.exists():
                return library, f"native kernels: {library}, built by another process"
            began = time.monotonic()
            with tempfile.TemporaryDirectory(dir=cache, prefix="building-") as work:
                built = Path(work) / LIBRARY_NAME
                _compile(compiler, wheel, built, cache / f"{key}.log")
                library.parent.mkdir(exist_ok=True)
                os.replace(built, library)
            return library, f"native kernels: {library}, built in {time.monotonic() - began:.0f} s"
    except OSError as error:
        raise BuildError(
            f"cannot write the native kernels to {cache} ({error}): OneFlow's own CPU kernels are "
            "used, several times slower; name another directory in $LIBAI_EXT_CACHE"
        ) from error


def main() -> int:
    try:
        print(build()[1])
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
