"""Brings the engine up once, before any test module imports it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fakecuda.gpus import FakeGpus

from libai_ext.startup import start

start()

# Under nohup it is ignored, by the programs that tests start as well, some of which are to be told
# by it. They do not inherit a handler.
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda number, frame: None)

ROOT = Path(__file__).resolve().parents[1]
TRAIN_NET = "projects/MAE/train_net.py"


@pytest.fixture(autouse=True)
def _alone():
    """Each test builds its models from the same seed and on one process, whatever ran before."""
    import oneflow as flow
    from libai.utils import distributed as dist

    flow.manual_seed(0)
    yield
    dist._DIST_UTIL = None  # LiBai makes one for a single process


class Launcher:
    """Runs commands of the project as a user does, from the checkout."""

    def __call__(self, *command, status=0, timeout=300, env=None, cwd=ROOT):
        """Output (both streams) of a command that must end with ``status``."""
        result = subprocess.run(
            [str(part) for part in command],
            cwd=cwd,
            env=dict(os.environ, **(env or {})),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            text=True,
        )
        assert result.returncode == status, result.stdout
        return result.stdout

    def train(self, config, processes, *options, **keywords):
        """``tools/train.sh`` on ``processes`` real processes."""
        return self("bash", "tools/train.sh", TRAIN_NET, config, processes, *options, **keywords)

    def python(self, *arguments, **keywords):
        return self(sys.executable, *arguments, **keywords)


@pytest.fixture(scope="session")
def launch():
    return Launcher()


@pytest.fixture(scope="session")
def fake_gpus(launch, tmp_path_factory):
    """Makes CUDA devices that do not exist: ``fake_gpus(count=2)`` is a
    :class:`fakecuda.gpus.FakeGpus`."""

    def make(**settings):
        return FakeGpus(launch, tmp_path_factory.mktemp("gpus"), **settings)

    return make


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """scikit-learn's digits as an image folder with train and test."""
    folder = tmp_path_factory.mktemp("digits")
    subprocess.run([sys.executable, ROOT / "tools/digits.py", folder], check=True)
    return folder


class SmallDisk:
    """A file system of one megabyte, by the kernel; needs the right to mount."""

    def __init__(self, folder: Path):
        self.folder = folder
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)

    def fill(self) -> None:
        with (self.folder / "filler").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError as error:
                assert error.errno == errno.ENOSPC

    def free(self) -> None:
        (self.folder / "filler").unlink()

    def allow(self, access: str) -> None:
        """``"ro"`` or ``"rw"``."""
        subprocess.run(["mount", "-o", f"remount,{access}", self.folder], check=True)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    yield SmallDisk(folder)
    subprocess.run(["umount", "-l", folder], check=True)


# What a machine need not have: mark of the tests, variable that names it, command that finds it.
HELPERS = (
    ("oracle", "MAE_ORACLE_PYTHON", "bash tools/dev/oracle.sh"),
    ("browser", "MAE_BROWSER", "bash tools/dev/browser.sh"),
)


def pytest_collection_modifyitems(config, items):
    """Tests whose helper is not at hand are left out by name, not skipped."""
    absent = {mark for mark, variable, _ in HELPERS if variable not in os.environ}
    left_out = [item for item in items if absent & {mark.name for mark in item.iter_markers()}]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_report_header():
    return [
        f"{mark}: " + os.environ.get(variable, f"no ({variable}=$({command}) bash tools/test.sh)")
        for mark, variable, command in HELPERS
    ]


def pytest_sessionfinish(session, exitstatus):
    session.config.final_status = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    """Leave as the programs do: the engine's own clean-up at exit has been seen to abort."""
    sys.stdout.flush()
    sys.stderr.flush()
    if hasattr(config, "final_status"):
        os._exit(config.final_status)
