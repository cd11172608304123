import shutil
import stat
import subprocess
import sys

import pytest

from libai_ext.kernels import build as build_module
from libai_ext.kernels.build import BuildError, build

# Stands in for g++ where only the cache is tested: writes a line to the output after a moment.
FAKE_COMPILER = """#!/bin/sh
if [ "$1" = --version ]; then echo "fake {version}"; exit 0; fi
sleep 0.5
while [ $# -gt 1 ]; do
    if [ "$1" = -o ]; then echo run >> "$2"; echo run >> "{runs}"; fi
    shift
done
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIBAI_EXT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def runs(tmp_path):
    """The file in which the fake compiler counts its runs."""
    return tmp_path / "runs"


@pytest.fixture
def use_compiler(tmp_path, runs, monkeypatch):
    def use(version="1"):
        compiler = tmp_path / "c++"
        compiler.write_text(FAKE_COMPILER.format(version=version, runs=runs))
        compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("CXX", str(compiler))

    use()
    return use


def _count(runs):
    return len(runs.read_text().splitlines())


def test_real_build_is_quick_and_without_warning(cache):
    path, done = build()
    assert path.exists()
    assert int(done.split("built in ")[1].split(" s")[0]) < 30
    (log,) = cache.glob("*.log")
    assert len(log.read_text().splitlines()) == 1, log.read_text()  # the command alone


def test_second_build_does_nothing(cache, use_compiler, runs):
    first, done = build()
    second, done_again = build()
    assert first == second
    assert "built in" in done
    assert "built before" in done_again
    assert _count(runs) == 1


def test_changed_source_is_built_anew(cache, use_compiler, runs, tmp_path, monkeypatch):
    first, _ = build()
    source = tmp_path / "csrc"
    shutil.copytree(build_module.SOURCE_DIR, source)
    monkeypatch.setattr(build_module, "SOURCE_DIR", source)
    assert build()[0] == first  # the same source, elsewhere
    header = source / "arithmetic" / "gemm.h"
    header.write_text(header.read_text() + "\n")
    assert build()[0] != first
    assert _count(runs) == 2


def test_another_compiler_or_cpu_builds_anew(cache, use_compiler, runs, monkeypatch):
    first, _ = build()
    use_compiler("2")
    second, _ = build()
    monkeypatch.setattr(build_module, "_cpu_instructions", lambda: b"flags: fpu")
    third, _ = build()
    assert len({first, second, third}) == _count(runs) == 3


def test_processes_that_start_together_build_once(cache, use_compiler, runs):
    command = [sys.executable, "-m", "libai_ext.kernels.build"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    lines = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert _count(runs) == 1
    assert sum("built in" in line for line in lines) == 1
    assert all(len(line.splitlines()) == 1 for line in lines)
    assert not list(cache.glob("building-*"))


def test_library_built_earlier_serves_without_a_compiler(cache, use_compiler, monkeypatch):
    path, _ = build()
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert build()[0] == path


def test_no_compiler(cache, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BuildError, match="apt-get install g\\+\\+"):
        build()


def test_failing_compiler_leaves_its_output(cache, tmp_path, monkeypatch):
    compiler = tmp_path / "c++"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] || { echo "out of cheese"; exit 1; }\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(BuildError, match="did not compile") as error:
        build()
    (log,) = cache.glob("*.log")
    assert str(log) in str(error.value)
    assert "out of cheese" in log.read_text()
    assert not list(cache.rglob("*.so"))


def test_cache_that_cannot_be_written(tmp_path, use_compiler, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIBAI_EXT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(BuildError, match="LIBAI_EXT_CACHE"):
        build()


@pytest.mark.slow
def test_arithmetic_is_clean_under_sanitizers():
    result = subprocess.run(
        [sys.executable, "-m", "libai_ext.kernels.sanitize"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, "no error found\n"), result.stderr
