"""The wheel, in an environment that holds what it requires and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
# What LiBai requires and does not import.
UNUSED = {"black", "flake8", "isort", "jieba", "nltk"}
SMALL = [
    "graph.enabled=False",
    "model.depth=1",
    "train.train_iter=3",
    "train.warmup_iter=1",
    "train.log_period=1",
]


def wheel(folder: Path) -> Path:
    """Built from what git tracks, and elsewhere: pip builds in the source tree."""
    source = folder / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.split("\0")
    for name in filter(None, listed):
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    build = ["wheel", "--no-deps", "--no-build-isolation", "-w", folder, source]
    subprocess.run([*PIP, *build], check=True)
    return next(folder.glob("*.whl"))


def required(name: str, found: dict[str, metadata.Distribution], absent: set[str]) -> None:
    """Gathers the distributions that ``name`` requires, from the environment of the tests."""
    for line in found[name].requires or ():
        requirement = Requirement(line)
        other = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            distribution = metadata.distribution(requirement.name)
        except metadata.PackageNotFoundError:
            absent.add(other)
            continue
        assert requirement.specifier.contains(distribution.version, prereleases=True), line
        if other not in found:
            found[other] = distribution
            required(other, found, absent)


def link(distribution: metadata.Distribution, site: Path) -> None:
    for file in distribution.files:
        if ".." in file.parts or not file.locate().exists():
            continue
        target = site / file
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file.locate(), target)
        except FileExistsError:  # of a namespace that several share
            pass
        except OSError:  # on another file system
            shutil.copy2(file.locate(), target)


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The folder of console commands of a new environment."""
    folder = tmp_path_factory.mktemp("packaging")
    env = folder / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", env], check=True)
    into = [*PIP, "--python", env / "bin/python", "install", "--no-deps", wheel(folder)]
    subprocess.run(into, check=True)
    site = next(env.glob("lib/python3*/site-packages"))
    found = {"libai-mae": next(metadata.distributions(name="libai-mae", path=[str(site)]))}
    absent: set[str] = set()
    required("libai-mae", found, absent)
    assert absent <= UNUSED and not {"pytest", "ruff"} & found.keys()
    for distribution in list(found.values())[1:]:
        link(distribution, site)
    return env / "bin"


@pytest.mark.slow
def test_the_commands_of_an_installed_wheel(launch, programs, tmp_path):
    """From the digits to a report, far from the checkout."""

    def run(command, *arguments, status=0):
        env = {"PYTHONPATH": "", "MPLBACKEND": "agg"}
        return launch(programs / command, *arguments, status=status, env=env, cwd=tmp_path)

    run("mae-digits", "data/digits")
    log = run("mae-train", "projects/MAE/configs/mae_digits.py", 2, *SMALL)
    assert "samples          1,198" in log and "data 2 x tensor 1 x pipeline 1" in log
    assert "native kernels: /" in log
    lines = (tmp_path / "output/digits/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [1, 2, 3]
    out = run("mae-convert", "output/digits", "mae.pth", "--to", "fb")
    assert "38 tensors equal bit for bit" in out
    assert run("mae-plot", "output/digits") == "runs.png\n"
    assert run("mae-report", "output/digits") == "output/digits/report.html\n"
    # These take a while to start, or a file.
    others = "visualize", "knn", "plan", "check-gpu", "features", "predict", "export-onnx"
    for command in others:
        assert "usage: " in run(f"mae-{command}", "--help")


@pytest.mark.slow
def test_what_is_wrong_is_said_in_one_message(launch, programs, tmp_path):
    env = {"PYTHONPATH": ""}
    out = launch(programs / "mae-train", "mae_digit", 1, status=2, env=env, cwd=tmp_path)
    assert out.startswith("error: config file mae_digit does not exist, nor is it one of the")
    assert "mae_cifar10, " in out and "Traceback" not in out
    out = launch(programs / "mae-train", "mae_digits", status=2, env=env, cwd=tmp_path)
    assert out.startswith("usage: mae-train [--restarts N] CONFIG N [options] [key=value ...]")
    assert out.endswith("the following arguments are required: N\n")
