"""Brings OneFlow and LiBai up for a process: environment, quiet import, kernels, repairs.

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

# How long OneFlow may take to come up; it waits for all ranks.
START_SECONDS = 600
# How long a rank waits for rank 0 before it leaves that to the engine.
_FIRST_RANK_SECONDS = 60
# For all ranks to hear what the last one has sent: the engine aborts those whose peer is gone.
_HEARD_SECONDS = 1
# What the engine prints at its start and need not: a machine has no InfiniBand; why there is no
# GPU, and that it cannot run on one of them, which libai_ext.device judges and says.
_NOISE = ("libibverbs not available", "cuda_device_descriptor_class.cpp:", "is not compatible with")


def start() -> None:
    """Import OneFlow quietly, put the native kernels in place and repair LiBai.

    Does nothing when called again.

    Raises:
        ConfigError: ranks of several jobs have met.
        RuntimeError: OneFlow has run an op already; native kernels cannot be loaded any more.
    """
    if not faulthandler.is_enabled():
        faulthandler.enable()  # where each thread was when the engine aborts or crashes
    if "oneflow" not in sys.modules:
        # 3 = fatal only: without a GPU the engine logs errors about CUDA that are none; with one,
        # warnings are shown. This and the threading variables are read at import.
        os.environ.setdefault("GLOG_minloglevel", "1" if device.hardware() else "3")
        configure_environment()
        _let_ranks_meet_without_proxy()
        deadlines.open_file()
        deadlines.begin(_what_is_waited_for(), end=START_SECONDS)
        _wait_for_first_rank()
        with _drop_noise_on_stderr():
            import oneflow

        _know_each_other(oneflow._oneflow_internal.cpu_broadcast)
        deadlines.idle()
    kernels.load()
    from libai_ext.compat import repairs

    repairs.apply()


def _what_is_waited_for() -> str:
    env = os.environ
    place = f"{env.get('MASTER_ADDR')} port {env.get('MASTER_PORT')}"
    return f"the start of OneFlow ({env.get('WORLD_SIZE', 1)} ranks connect to {place})"


def _let_ranks_meet_without_proxy() -> None:
    """The engine's gRPC, and nothing else, reads this variable: hosts that a proxy is not for. It
    compares the ends of their names, which these are. Downloads go through the proxy as before."""
    os.environ["no_grpc_proxy"] = ",".join(string.digits + string.ascii_lowercase + "]")


def _wait_for_first_rank() -> None:
    """Until rank 0 listens: the engine sleeps for 10 s when it comes before."""
    env = os.environ
    # The engine sets -1, and an address nobody listens at, in a process that was not launched;
    # the programs it starts inherit both.
    if int(env.get("RANK", 0)) < 1 or not {"MASTER_ADDR", "MASTER_PORT"} <= env.keys():
        return
    address = env["MASTER_ADDR"], int(env["MASTER_PORT"])
    deadline = time.monotonic() + _FIRST_RANK_SECONDS
    while time.monotonic() < deadline:
        try:
            socket.create_connection(address, timeout=1).close()
            return
        except OSError:
            time.sleep(0.02)


def _know_each_other(broadcast) -> None:
    """Compare the number of the job among the ranks: the engine lets those of two jobs mix.

    Args:
        broadcast: gives every rank the bytes of one; called with these, elsewhere with None, and
            with the rank that has them.
    """
    env = os.environ
    own, size = env.get(JOB, "").encode(), int(env.get("WORLD_SIZE", 1))
    if size == 1:
        return
    others = [broadcast(own if rank == int(env["RANK"]) else None, rank) for rank in range(size)]
    if set(others) != {own}:
        time.sleep(_HEARD_SECONDS)
        raise ConfigError(
            f"ranks of another job have come to port {env['MASTER_PORT']} of {env['MASTER_ADDR']}: "
            "set another PORT for one of the two"
        )


@contextlib.contextmanager
def _drop_noise_on_stderr():
    """Hold back what C++ code writes to file descriptor 2, then pass on all but the noise."""
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
            device.heed(text)
            for line in text.splitlines(keepends=True):
                if not any(noise in line for noise in _NOISE):
                    os.write(2, line.encode())
