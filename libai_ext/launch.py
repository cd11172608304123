"""Start the processes of a job on this machine and end them together.

``python -m libai_ext.launch --nproc-per-node N SCRIPT [ARGS]`` does what
``oneflow.distributed.launch`` does, and keeps its promises: when a rank fails the others are
ended, when the launcher is told to stop or is killed nothing stays behind.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time

from libai_ext.kernels.threads import configure_environment

GRACE_SECONDS = 15
_PR_SET_PDEATHSIG = 1


def main(argv: list[str] | None = None) -> int:
    """Run the job; returns the exit status of the first rank that failed, else 0."""
    args = _parse(argv)
    return Job(args).run()


def _parse(argv) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="libai_ext.launch", description=__doc__)
    parser.add_argument("--nproc-per-node", type=int, default=1)
    parser.add_argument("--nnodes", type=int, default=1)
    parser.add_argument("--node-rank", type=int, default=0)
    parser.add_argument("--master-addr", default="127.0.0.1", help="address of node 0")
    parser.add_argument("--master-port", type=int, help="needed for several nodes; else any free")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="SCRIPT ...")
    args = parser.parse_args(argv)
    if args.nproc_per_node < 1 or not 0 <= args.node_rank < args.nnodes:
        parser.error("needs --nproc-per-node >= 1 and 0 <= --node-rank < --nnodes")
    if args.nnodes > 1 and args.master_port is None:
        parser.error("several nodes need the same --master-port (PORT) on each")
    if not args.command:
        parser.error("no script given")
    return args


class Job:
    """The ranks of one node."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.ranks: list[subprocess.Popen] = []
        self.stop_signal: int | None = None

    def run(self) -> int:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        try:
            for local_rank in range(self.args.nproc_per_node):
                self.ranks.append(self._start(local_rank))
            return self._wait()
        finally:
            self._end()

    def _start(self, local_rank: int) -> subprocess.Popen:
        args = self.args
        if args.master_port is None:
            args.master_port = _free_port()
        env = dict(
            os.environ,
            MASTER_ADDR=args.master_addr,
            MASTER_PORT=str(args.master_port),
            WORLD_SIZE=str(args.nnodes * args.nproc_per_node),
            RANK=str(args.node_rank * args.nproc_per_node + local_rank),
            LOCAL_RANK=str(local_rank),
        )
        configure_environment(args.nproc_per_node, env)
        # A group of its own, so that a rank is ended together with its data workers.
        return subprocess.Popen(
            [sys.executable, "-u", *args.command],
            env=env,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )

    def _wait(self) -> int:
        while True:
            states = [rank.poll() for rank in self.ranks]
            failed = [i for i, state in enumerate(states) if state not in (None, 0)]
            if self.stop_signal is not None:
                return 128 + self.stop_signal
            if failed:
                return self._report(failed[0], states[failed[0]])
            if all(state == 0 for state in states):
                return 0
            time.sleep(0.1)

    def _report(self, local_rank: int, status: int) -> int:
        if self.args.nproc_per_node > 1:
            how = f"exit status {status}"
            if status < 0:
                how = signal.Signals(-status).name
            print(f"launch: rank {local_rank} ended with {how}; ending the job", file=sys.stderr)
        return status if status > 0 else 128 - status

    def _on_signal(self, number, frame) -> None:
        self.stop_signal = number

    def _end(self) -> None:
        """SIGTERM to every rank, SIGKILL to what is left after the grace."""
        for rank in self.ranks:
            _signal_group(rank, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < deadline and any(r.poll() is None for r in self.ranks):
            time.sleep(0.05)
        for rank in self.ranks:
            _signal_group(rank, signal.SIGKILL)
            rank.wait()


def _signal_group(process: subprocess.Popen, number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass


def _die_with_parent() -> None:
    """Runs in the child: the kernel ends it when the launcher dies, even by SIGKILL."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
