"""``tools/train.sh`` where the set-up has not been, or was elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# As setuptools notes the place of a checkout.
FINDER = """
import sys
from importlib.machinery import PathFinder

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return PathFinder.find_spec(name, path or [{folder!r}])

def install():
    sys.meta_path.append(Finder)
"""


def train(checkout, path, *command):
    return subprocess.run(
        ["bash", checkout / "tools/train.sh", *command],
        cwd=checkout.parent,
        env={"PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def checkout(tmp_path):
    """A copy of the code, without an environment."""
    folder = tmp_path / "checkout"
    for name in ("libai_ext", "tools"):
        shutil.copytree(ROOT / name, folder / name)
    return folder


@pytest.mark.parametrize("environment", ["none", "of another machine", "half"])
def test_without_the_set_up_one_message_says_so(checkout, tmp_path, environment):
    programs = tmp_path / "bin"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "plain"], check=True)
    programs.mkdir()
    (programs / "python3").symlink_to(tmp_path / "plain/bin/python")
    (checkout / ".venv/bin").mkdir(parents=True)
    if environment != "none":
        target = "/nowhere/python" if environment == "of another machine" else programs / "python3"
        (checkout / ".venv/bin/python").symlink_to(target)
    out = train(checkout, f"{programs}:/usr/bin:/bin", "x.py", "CONFIG", "1")
    assert (out.returncode, out.stdout) == (2, "")
    said = "error: OneFlow, LiBai or this project is not installed: run bash "
    assert out.stderr == f"{said}{checkout}/tools/setup.sh\n"


def test_a_checkout_that_was_moved_runs_its_own_code(checkout, tmp_path):
    """What pip has noted of its place leads to another one, which is there as well."""
    environment = checkout / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    site = next(environment.glob("lib/python3*/site-packages"))
    old = tmp_path / "old"
    shutil.copytree(ROOT / "libai_ext", old / "libai_ext")
    (site / "others.pth").write_text(sysconfig.get_paths()["purelib"])
    (site / "__editable__.pth").write_text("import __editable__; __editable__.install()")
    (site / "__editable__.py").write_text(FINDER.format(folder=str(old)))
    lines = (ROOT / "tools/setup.sh").read_text().splitlines()
    line = next(line for line in lines if "checkout.pth" in line)
    subprocess.run(["bash", "-euc", line], cwd=checkout, check=True)
    moved = checkout.rename(tmp_path / "moved")
    program = tmp_path / "program.py"
    program.write_text("import libai_ext, os\nos.write(1, libai_ext.__file__.encode())\n")
    out = train(moved, os.environ["PATH"], program, "CONFIG", "1")
    assert (out.returncode, out.stdout) == (0, f"{moved}/libai_ext/__init__.py"), out.stderr
