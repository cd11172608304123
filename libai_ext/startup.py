"""Starts OneFlow and LiBai in a process: environment, quiet import, kernels, repairs.

Entry points call :func:`start` before they import anything that imports OneFlow.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import socket
import string
import sys
import time

from libai_ext import device, kernels
from libai_ext.errors import ConfigError
from libai_ext.kernels.threads import configure_environment
from libai_ext.launch import deadlines
from libai_ext.launch.exit_report import JOB, startup_output

# Time limit for the start of OneFlow, which waits for all ranks.
START_SECONDS = 600
# A rank waits so long for rank 0; then it lets the engine wait.
_RANK_0_SECONDS = 60
# For all ranks to receive the last message: the engine aborts a rank whose peer is gone.
_ARRIVAL_SECONDS = 1
# Needless messages of the engine at its start: no InfiniBand; no GPU, or one that it cannot use,
# which libai_ext.device reports.
_NOISE = ("libibverbs not available", "cuda_device_descriptor_class.cpp:", "is not compatible with")


def start() -> None:
    """Import OneFlow quietly, load the native kernels and repair LiBai.

    Does nothing when called again.

    Raises:
        ConfigError: ranks of several jobs have connected to each other.
        RuntimeError: OneFlow has already run an op: it is too late to load native kernels.
    """
    if not faulthandler.is_enabled():
        # Where each thread was when the engine aborts or crashes. sys.stderr of a notebook is no
        # file.
        faulthandler.enable(2)
    if "oneflow" not in sys.modules:
        # 3 = fatal only: without a GPU the engine logs harmless errors about CUDA; with one,
        # warnings are shown. This and the threading variables are read at import.
        os.environ.setdefault("GLOG_minloglevel", "1" if device.hardware() else "3")
        configure_environment()
        _bypass_proxy()
        deadlines.open_file()
        deadlines.begin(_startup_task(), end=START_SECONDS)
        _wait_for_rank_0()
        with _filter_stderr():
            import oneflow

        _check_same_job(oneflow._oneflow_internal.cpu_broadcast)
        deadlines.idle()
    kernels.load()
    from libai_ext.compat import repairs

    repairs.apply()


def _startup_task() -> str:
    env = os.environ
    place = f"{env.get('MASTER_ADDR')} port {env.get('MASTER_PORT')}"
    return f"the start of OneFlow ({env.get('WORLD_SIZE', 1)} ranks connect to {place})"


def _bypass_proxy() -> None:
    """Ranks connect to each other without a proxy. Only the engine's gRPC reads this variable, a
    list of suffixes of host names that need no proxy. Downloads still use the proxy."""
    os.environ["no_grpc_proxy"] = ",".join(string.digits + string.ascii_lowercase + "]")


def _wait_for_rank_0() -> None:
    """Wait until rank 0 listens: the engine sleeps for 10 s if it connects too early."""
    env = os.environ
    # In a process without a launcher, the engine sets rank -1 and an unused address. Programs that
    # it starts inherit both.
    if int(env.get("RANK", 0)) < 1 or not {"MASTER_ADDR", "MASTER_PORT"} <= env.keys():
        return
    address = env["MASTER_ADDR"], int(env["MASTER_PORT"])
    deadline = time.monotonic() + _RANK_0_SECONDS
    while time.monotonic() < deadline:
        try:
            socket.create_connection(address, timeout=1).close()
            return
        except OSError:
            time.sleep(0.02)


def _check_same_job(broadcast) -> None:
    """Compare the job number of all ranks: the engine lets ranks of two jobs mix.

    Args:
        broadcast: ``broadcast(data, rank)`` returns the bytes of ``rank`` on every rank; ``data``
            is None on the others.
    """
    env = os.environ
    own, size = env.get(JOB, "").encode(), int(env.get("WORLD_SIZE", 1))
    if size == 1:
        return
    others = [broadcast(own if rank == int(env["RANK"]) else None, rank) for rank in range(size)]
    if set(others) != {own}:
        time.sleep(_ARRIVAL_SECONDS)
        raise ConfigError(
            f"ranks of another job have connected to port {env['MASTER_PORT']} of "
            f"{env['MASTER_ADDR']}: "
            "set another PORT for one of the two"
        )


@contextlib.contextmanager
def _filter_stderr():
    """Hold back what C++ code writes to file descriptor 2, then print it without the noise."""
    sys.stderr.flush()
    with startup_output() as held:
        stderr = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            text = held.read().decode(errors="replace")
            device.read_engine_log(text)
            for line in text.splitlines(keepends=True):
                if not any(noise in line for noise in _NOISE):
                    os.write(2, line.encode())
