"""tools/setup.sh on machines that lack one thing or another.

What is too big or not at hand is stood in for: Pythons of other versions by this one under another
number, uv by a script in a wheel, and a network by a folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # environments are made

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("bash", "cat", "chmod", "dirname", "env", "mkdir", "sha256sum", "uname")
PYTHON = """#!/usr/bin/env bash
case "$*" in
  *"%d.%d"*) echo {version} ;;
  --version) echo Python {version}.7 ;;
  *ensurepip*) {venv} && exec {real} "$@" ;;
  "-c import pip") {pip} ;;
  *) exec {real} "$@" ;;
esac
"""
# Notes how it is called. The .venv that it makes notes what is installed.
UV = """#!/usr/bin/env bash
echo "uv $*" >>"$UV_LOG"
case "$1" in
  --version) ;;
  python) [ "$UV_REACHES" = yes ] || { echo "error: no route to the mirror" >&2; exit 2; } ;;
  venv)
    mkdir -p .venv/bin .venv/lib/python3.10/site-packages
    printf '#!/usr/bin/env bash\\necho "pip ${*:4}" >>"$UV_LOG"\\n' >.venv/bin/python
    chmod +x .venv/bin/python ;;
esac
"""


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


class Machine:
    """A checkout and the programs on its PATH."""

    def __init__(self, folder: Path):
        self.folder, self.checkout, self.log = folder, folder / "checkout", folder / "uv.log"
        (folder / "bin").mkdir()
        for name in PROGRAMS:
            (folder / "bin" / name).symlink_to(shutil.which(name))
        (self.checkout / "tools").mkdir(parents=True)
        for name in ("tools/setup.sh", "requirements.txt", "pyproject.toml", "setup.py"):
            shutil.copy(ROOT / name, self.checkout / name)

    def python(self, name: str, version: str, venv: bool = True, pip: bool = True) -> None:
        text = PYTHON.format(
            version=version, real=sys.executable, venv=str(venv).lower(), pip=str(pip).lower()
        )
        write_program(self.folder / "bin" / name, text)

    def uv_to_download(self) -> None:
        with zipfile.ZipFile(self.folder / "uv-9-py3-none-any.whl", "w") as wheel:
            about = "uv-9.dist-info"
            script = zipfile.ZipInfo("uv-9.data/scripts/uv")
            script.external_attr = 0o100755 << 16  # a regular file
            wheel.writestr(script, UV)
            wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: uv\nVersion: 9\n")
            wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr(f"{about}/RECORD", "")

    def set_up(self, status: int, reaches: bool = True) -> str:
        env = {
            "PATH": str(self.folder / "bin"),
            "HOME": str(self.folder),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.folder),
            "PIP_CONFIG_FILE": os.devnull,
            "UV_LOG": str(self.log),
            "UV_REACHES": "yes" if reaches else "no",
        }
        out = subprocess.run(
            ["bash", "tools/setup.sh"],
            cwd=self.checkout,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert out.returncode == status, out.stdout
        return out.stdout

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines()


INSTALLED = [
    "pip install -q -c requirements.txt setuptools wheel pybind11",
    "pip install -q --no-build-isolation --no-deps -r requirements.txt",
    "pip install -q --no-build-isolation --no-deps -e .",
]


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.mark.parametrize("venv", [True, False], ids=["venv", "pip only"])
def test_a_newer_python_fetches_uv_and_uv_an_older_python(machine, venv):
    machine.python("python3", "3.12", venv=venv)
    machine.uv_to_download()
    out = machine.set_up(0)
    assert out.splitlines() == [
        "setup: no Python 3.10, 3.9 or 3.8 on PATH or under pyenv, uv fetches one",
        "setup: installing uv into .cache/uv",
        "setup: installing into .venv (2 GB to download once)",
    ]
    assert machine.calls() == [
        "uv python install --no-progress 3.10",
        "uv venv -q --clear --seed --python 3.10 .venv",
        *INSTALLED,
    ]
    assert machine.set_up(0) == ""


def test_uv_cannot_reach_what_it_fetches(machine):
    machine.python("python3", "3.13", venv=False)
    machine.uv_to_download()
    out = machine.set_up(1, reaches=False).splitlines()
    assert out[2:4] == [
        "error: no route to the mirror",
        "error: uv could not fetch Python 3.10, for the reason above.",
    ]
    assert "UV_PYTHON_INSTALL_MIRROR" in out[4] and "pyenv install 3.10" in out[5]
    # Next time uv is there, and goes on.
    assert "installing uv" not in machine.set_up(0)
    assert machine.calls()[-3:] == INSTALLED


def test_uv_is_not_to_be_had(machine):
    machine.python("python3", "3.12", venv=False)
    out = machine.set_up(1)
    assert "No matching distribution found for uv" in out
    assert "error: no uv, for the reason above. Install Python 3.10 (pyenv install 3.10)" in out
    machine.python("python3", "3.12", venv=False, pip=False)
    out = machine.set_up(1)
    assert "no python3 with venv or pip to install uv" in out
    assert "apt install python3-venv" in out and not machine.log.exists()


def test_the_users_uv_serves(machine):
    """Debian's python3.10 without python3.10-venv, and uv on the PATH."""
    machine.python("python3.10", "3.10", venv=False)
    write_program(machine.folder / "bin/uv", UV)
    out = machine.set_up(0)
    assert out.startswith("setup: Python 3.10.7 has no venv, uv makes .venv\n")
    assert machine.calls() == ["uv venv -q --clear --seed --python python3.10 .venv", *INSTALLED]


def test_no_venv_and_no_uv(machine):
    machine.python("python3", "3.9", venv=False, pip=False)
    out = machine.set_up(1)
    assert "setup: Python 3.9.7 has no venv, uv makes .venv" in out
    assert "error: no uv, for the reason above. Install it, or venv (Debian and Ubuntu:\n" in out


def test_a_python_that_serves_needs_no_uv(machine):
    """An environment that an earlier set-up left half made is made again."""
    machine.python("python3", "3.12")
    machine.python("python3.9", "3.9")
    half = machine.checkout / ".venv/bin/python"
    half.parent.mkdir(parents=True)
    half.symlink_to("/nowhere/python")
    out = machine.set_up(1)  # there is nothing to install from
    assert out.splitlines()[:2] == [
        "setup: .venv by Python 3.9.7",
        "setup: installing into .venv (2 GB to download once)",
    ]
    assert subprocess.run([half, "-c", "import pip"]).returncode == 0
