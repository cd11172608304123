import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from libai_ext.kernels import build as build_module
from libai_ext.kernels.build import BuildError, build

# Stands in for g++ where only the cache is tested: writes a line to the output after a moment.
FAKE_COMPILER = """#!/bin/sh
if [ "$1" = --version ]; then echo "fake {version}"; exit 0; fi
sleep {seconds}
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
    def use(version="1", seconds=0.1):
        compiler = tmp_path / "c++"
        compiler.write_text(FAKE_COMPILER.format(version=version, runs=runs, seconds=seconds))
        compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("CXX", str(compiler))

    use()
    return use


def _count(runs):
    return len(runs.read_text().splitlines())


@pytest.mark.slow
def test_real_build_is_without_warning(cache):
    path, done = build()
    assert path.exists() and re.search(r"built in \d+ s", done)
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
    use_compiler(seconds=0.5)
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


def test_a_user_without_a_home(use_compiler, monkeypatch):
    for name in ("LIBAI_EXT_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 987654)
    with pytest.raises(BuildError, match="this user has no home: .*LIBAI_EXT_CACHE"):
        build()


def test_cache_that_cannot_be_written(tmp_path, use_compiler, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIBAI_EXT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(BuildError, match="LIBAI_EXT_CACHE"):
        build()


def truncated(library):
    os.truncate(library, library.stat().st_size // 2)


DAMAGES = {
    "cut short": truncated,
    "empty": lambda library: os.truncate(library, 0),
    "changed": lambda library: library.write_text("nur\n"),
    "removed": os.unlink,
    "a folder": lambda library: (library.unlink(), library.mkdir()),
    "a pipe": lambda library: (library.unlink(), os.mkfifo(library)),
    "a link": lambda library: (
        library.rename("moved"),
        library.symlink_to(Path("moved").resolve()),
    ),
    "no checksum": lambda library: library.with_name("sha256").unlink(),
    "another checksum": lambda library: library.with_name("sha256").write_text("0" * 64),
    "for all to write": lambda library: library.chmod(0o722),
    "for a group to write": lambda library: library.parent.chmod(0o770),
    "a checksum for all to write": lambda library: library.with_name("sha256").chmod(0o666),
    "another user's": lambda library: os.chown(library, 12345, -1),
    "another user's folder": lambda library: os.chown(library.parent, 12345, -1),
    "a file in its folder's place": lambda library: (
        shutil.rmtree(library.parent),
        library.parent.write_text(""),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_library_that_is_not_to_be_loaded_is_built_again(
    request, cache, use_compiler, runs, tmp_path, monkeypatch, damage
):
    if "another user's" in damage:
        request.getfixturevalue("superuser")
    monkeypatch.chdir(tmp_path)
    library, _ = build()
    DAMAGES[damage](library)
    again, done = build()
    assert (again, _count(runs)) == (library, 2)
    assert library.read_text() == "run\n" and not library.is_symlink()
    assert (library.stat().st_uid, library.stat().st_mode & 0o777) == (os.geteuid(), 0o700)
    assert damage in ("removed", "a file in its folder's place") or ", again: " in done
    assert "built before" in build()[1]
    assert sorted(path.name for path in cache.iterdir() if path.is_dir()) == [library.parent.name]


def test_a_damaged_library_without_a_compiler(cache, use_compiler, monkeypatch):
    library, _ = build()
    truncated(library)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BuildError, match="is not what was built .*, and no C\\+\\+ compiler"):
        build()


def test_the_cache_is_the_users_own(superuser, cache, use_compiler, runs, monkeypatch):
    cache.mkdir(mode=0o777)
    cache.chmod(0o777)  # whatever the umask
    library, _ = build()
    assert cache.stat().st_mode & 0o777 == 0o755
    os.chown(cache, 12345, -1)
    for compiler in (os.environ["CXX"], "no-such-compiler"):
        monkeypatch.setenv("CXX", compiler)
        with pytest.raises(BuildError, match="cache belongs to another user .number 12345.*CACHE"):
            build()
    assert _count(runs) == 1


def test_what_the_superuser_built_serves_all(cache, use_compiler, monkeypatch):
    library, _ = build()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert build()[0] == library


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_compiler_ends_with_the_process_that_started_it(cache, tmp_path, monkeypatch, number):
    """And what it has started itself, as g++ starts cc1plus; its files go at the next build."""
    compiler, pids = tmp_path / "c++", tmp_path / "pids"
    compiler.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && exit 0\nsleep 60 & echo $$ $! > {pids}.new\n'
        f"mv {pids}.new {pids}\nwait\n"
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    command = [sys.executable, "-m", "libai_ext.kernels.build"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    until(pids.exists)
    started = [int(pid) for pid in pids.read_text().split()]
    assert all(map(_alive, started))
    process.send_signal(number)
    assert process.wait(20) != 0
    until(lambda: not any(map(_alive, started)))
    left = len(list(cache.glob("building-*")))
    assert left == (0 if number == signal.SIGINT else 1)
    compiler.write_text(FAKE_COMPILER.format(version="1", runs=tmp_path / "runs", seconds=0))
    build()
    assert not list(cache.glob("building-*"))


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_compiler_that_never_ends(cache, use_compiler, monkeypatch):
    use_compiler(seconds=60)
    monkeypatch.setattr(build_module, "MAX_SECONDS", 0.3)
    with pytest.raises(BuildError, match="took more than 0.3 s"):
        build()
    assert not list(cache.glob("building-*"))


@pytest.mark.slow
@pytest.mark.parametrize("processor", ["native", "x86-64-v3", "x86-64"])  # the others: AVX2, SSE2
def test_arithmetic_is_clean_under_sanitizers(processor):
    result = subprocess.run(
        [sys.executable, "-m", "libai_ext.kernels.sanitize", f"-march={processor}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, "no error found\n"), result.stderr
