"""tools/dev/fuzz: a short run, what it once found, and what it takes for a finding."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FUZZ = ROOT / "tools/dev/fuzz"
RUNS = 300
# Of findings/: how many are read, and refused, by target.
FOUND = {"lines": (4, 0), "torch": (0, 2), "tar-cache": (0, 1), "texts": (1, 8)}
TARGETS = {
    *("config", "pickle", "torch", "safetensors", "oneflow", "tar", "tar-cache", "lmdb"),
    *("cifar", "image", "channels", "texts", "lines"),
}


def run(*arguments):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_seeds_and_findings_hold():
    """Without atheris."""
    result = run(FUZZ / "replay.py")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert set(report) == TARGETS and all(row["seeds"] > 1 for row in report.values())
    found = {name: (row["read"], row["refused"]) for name, row in report.items()}
    assert {name: counts for name, counts in found.items() if any(counts)} == FOUND


@pytest.mark.slow
def test_a_short_run_finds_nothing(tmp_path):
    result = run(FUZZ, "--runs", RUNS, "--folder", tmp_path)
    assert result.returncode == 0, result.stdout
    row = rf"(\S+): {RUNS} inputs in \d+ s, branches (\d+) -> (\d+), no finding"
    rows = re.findall(f"^{row}$", result.stdout, re.MULTILINE)
    assert {name for name, _, _ in rows} == TARGETS, result.stdout
    # Were it not guided, or all refused at the door, there would be nothing new.
    assert all(0 < int(first) < int(last) for _, first, last in rows)


def refuse(path):
    raise ValueError(f"{path}: refused")


def refuse_without_a_name(path):
    raise ValueError("refused")


def fail(path):
    raise KeyError("of no documented type")


def run_code(path):
    exec(repr(path.read_text()))


def import_what_it_names(path):
    __import__(path.read_text())


def write(path):
    path.with_name("other").write_bytes(b"")


def dawdle(path):
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass


@pytest.fixture
def guard(monkeypatch):
    monkeypatch.syspath_prepend(str(FUZZ))
    return __import__("guard")


def checked(guard, folder, read, **options):
    target = guard.Target("name", lambda _: [], read, (ValueError,), **options)
    one = guard.Guard(target, folder)
    one.start([])
    return one.check(b"wave")


def test_an_input_is_read_or_refused(guard, tmp_path):
    assert checked(guard, tmp_path, Path.read_bytes) is True
    assert (tmp_path / "input").read_bytes() == b"wave"
    assert checked(guard, tmp_path, refuse) is False


@pytest.mark.parametrize(
    ("read", "error"),
    [
        (fail, "of no documented type"),
        (refuse_without_a_name, "does not name the file: refused"),
        (run_code, "reading does not need: .*compile"),
        (import_what_it_names, "reading does not need: .*import .'wave'"),
        (write, "reading does not need: .*other"),
        (dawdle, "it takes 0.2 s"),
    ],
)
def test_anything_else_is_a_finding(guard, tmp_path, monkeypatch, read, error):
    monkeypatch.setattr(guard, "MAX_SECONDS", 0.1)
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    with pytest.raises((guard.Finding, KeyError), match=error):
        checked(guard, tmp_path, read)


def test_a_second_reading_that_differs_is_a_finding(guard, tmp_path):
    def compare(path, result):
        guard.expect(result == b"another", "it is read in two ways")

    with pytest.raises(guard.Finding, match="two ways"):
        checked(guard, tmp_path, Path.read_bytes, compare=compare)


def test_code_that_ends_the_process_is_a_finding(guard, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/true")
    status, line = runpy.run_path(str(FUZZ / "__main__.py"))["_fuzz"]("lines", tmp_path, [])
    assert status == 1
    assert re.fullmatch(rf"lines: 0 inputs in \d+ s, branches .*, A FINDING: .* {tmp_path}", line)
