"""Brings the engine up once, before any test module imports it."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fakecuda.gpus import FakeGpus

from libai_ext.errors import ConfigError
from libai_ext.launch import ports
from libai_ext.startup import start

start()

ROOT = Path(__file__).resolve().parents[1]
TRAIN_NET = "projects/MAE/train_net.py"


@pytest.fixture(autouse=True, scope="session")
def _as_programs_start():
    """Of the processes that run tests; what starts the workers of pytest-xdist runs none."""
    from libai_ext.engine.graph import use_single_cpu_stream

    use_single_cpu_stream()  # before any graph, whichever test builds the first
    # Under nohup it is ignored, by the programs that tests start as well, some of which are to be
    # told by it. They do not inherit a handler, nor would the workers.
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda number, frame: None)


@pytest.fixture(autouse=True)
def _alone():
    """Each test builds its models from the same seed and on one process, and sees what is logged,
    whatever ran before."""
    import oneflow as flow
    from libai.utils import distributed as dist

    from libai_ext.data.walk import warn_once

    flow.manual_seed(0)
    warn_once.cache_clear()  # two tests may give their folders the same name
    for name in ("libai", "libai_ext", "projects"):
        logging.getLogger(name).propagate = True  # LiBai's set-up ends it, for the whole process
    yield
    dist._DIST_UTIL = None  # LiBai makes one for a single process


class Launcher:
    """Runs commands of the project as a user does, from the checkout."""

    def __call__(self, *command, status=0, timeout=900, env=None, cwd=ROOT):
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


@pytest.fixture
def port():
    """Free, with the one after it. None of those that the kernel gives to connections, of which
    other tests make many meanwhile."""
    while True:
        number = random.SystemRandom().randrange(20000, 32766, 2)
        with contextlib.suppress(ConfigError):
            for held in ports.hold([number, number + 1]):
                held.close()
            return number


@pytest.fixture(scope="session")
def oracle_python():
    """An interpreter with real PyTorch."""
    if "MAE_ORACLE_PYTHON" not in os.environ:
        pytest.skip("no PyTorch to compare with: MAE_ORACLE_PYTHON=$(bash tools/dev/oracle.sh)")
    return os.environ["MAE_ORACLE_PYTHON"]


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


@pytest.fixture(scope="session")
def superuser():
    """For tests that mount, change owners, or make network namespaces."""
    try:
        command = ["unshare", "--mount", "--net", "ip", "link"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs root, unshare and ip: {error}")


@pytest.fixture
def small_disk(superuser, tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    yield SmallDisk(folder)
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.hookimpl(tryfirst=True)  # before -m is obeyed
def pytest_collection_modifyitems(items):
    """Mark what ``tools/test.sh --quick`` runs."""
    for item in items:
        if not (item.get_closest_marker("slow") or {"launch", "fake_gpus"} & {*item.fixturenames}):
            item.add_marker("quick")


def pytest_addoption(parser):
    text = "a test that skips, for what this machine lacks, fails"
    parser.addoption("--no-skips", action="store_true", help=text)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    report = (yield).get_result()
    if report.skipped and item.config.getoption("no_skips", False):
        report.outcome, report.longrepr = "failed", f"--no-skips: {report.longrepr[2]}"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    import shared_out

    return shared_out.LongestFirst(config, log)


@pytest.hookimpl(hookwrapper=True)
def pytest_report_to_serializable():
    """What a worker of pytest-xdist sends; tests log names of files that are no text."""
    import shared_out

    sent = yield
    sent.force_result(shared_out.encodable(sent.get_result()))


def pytest_runtest_logreport(report):
    """Name what fails at once: a run that is ended from outside prints no summary."""
    if report.failed and hasattr(report, "node"):  # from a worker
        print(f"\nfailed: {report.nodeid} ({report.when})", flush=True)


def pytest_sessionfinish(session, exitstatus):
    session.config.final_status = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    """Leave as the programs do: the engine's own clean-up at exit has been seen to abort."""
    sys.stdout.flush()
    sys.stderr.flush()
    if hasattr(config, "final_status"):
        os._exit(config.final_status)
