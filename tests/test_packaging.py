from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

PROGRAM = """
from libai_ext.startup import start
start()
import libai_ext, projects.MAE.modeling.mae as mae
from libai_ext import config, kernels
print(libai_ext.__file__)
print(mae.__file__)
print(config.get_config("common/train.py").train.seed)
recipe = mae.__file__.replace("modeling/mae.py", "configs/mae_pretraining.py")
print(config.load(recipe).train.train_epoch)
print(kernels.load().loaded)
"""


@pytest.mark.slow
def test_pip_install_is_complete(tmp_path):
    """Installed into an empty folder and run from elsewhere, nothing comes from the checkout."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    source = tmp_path / "source"
    files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.split("\0")
    for name in filter(None, files):  # pip builds in the source tree: leave the checkout clean
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    subprocess.run([*pip, "--target", tmp_path / "site", source], check=True)
    out = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=str(tmp_path / "site")),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout.splitlines()
    site = tmp_path / "site"
    assert out == [
        str(site / "libai_ext/__init__.py"),
        str(site / "projects/MAE/modeling/mae.py"),
        "0",
        "800",
        "True",
    ]
