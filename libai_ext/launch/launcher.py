"""Start the processes of a job on this machine and end them together.

``python -m libai_ext.launch --nproc-per-node N SCRIPT [ARGS]`` does what
``oneflow.distributed.launch`` does, and leaves no process behind: when a rank fails, it ends the
others and shows the traceback of that rank last; when the launcher is stopped or killed, the ranks
end. On several nodes, each node has a launcher; they end together as well. The variables NODE,
NODE_RANK, ADDR and PORT are the defaults of the options.

Exit status: 0; 2 for errors in the config, data or device; 74 if data cannot be read for the
present; 75 if the ranks saved a checkpoint after a signal; 128 + the signal if it ended them
without one; 1 if a task missed its deadline; else that of the rank that failed first.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time

from libai_ext.errors import ConfigError
from libai_ext.kernels.threads import configure_environment
from libai_ext.launch import nodes
from libai_ext.launch.deadlines import DEADLINE_FILE, DeadlineMonitor, dump_stacks
from libai_ext.launch.exit_report import (
    ATTEMPT,
    BEGUN,
    FINISHED,
    GOES_ON,
    JOB,
    SAVED_ON_SIGNAL,
    USAGE_ERROR,
)
from libai_ext.launch.options import hold_ports, parse
from libai_ext.launch.rank import Rank
from libai_ext.launch.rendezvous import SECRET, Peers
from libai_ext.launch.stop_signals import (
    REPEAT_SECONDS,
    STOP_SIGNALS,
    RepeatedSignal,
    stop_signals,
)

# A rank may end by itself for so long: after the failure of a peer, and after a stop signal.
GRACE_SECONDS = 5
SAVE_SECONDS = 600
# Other ranks may fail just after the first one.
_OTHER_FAILURES_SECONDS = 0.5
# For the report of a failed node, whose loss made the engine abort here.
_PEER_REPORT_SECONDS = 3
# Like a rank's order of failure: what was reported comes before, aborts for want of a peer after.
_STOPPED = (2, -1)
_NO_SECRET = (
    f"launch: {SECRET} is not set: until all nodes have connected, any program that reaches port "
    "{} of node 0 can pose as a node; set the same secret on each"
)


def main(argv: list[str] | None = None) -> int:
    """Run the job, and restart it after a crash if the options allow; returns its exit status."""
    args = parse(argv, __doc__)
    if args.hosts:
        return nodes.Hosts(args.hosts, args.arguments, args.master_port).run(stop_signals())
    if args.stdin_control:
        args.secret = os.fsdecode(_stdin().readline()).strip()
        os.environ.update(json.loads(_stdin().readline() or "{}"))
        threading.Thread(target=_follow_stdin, daemon=True).start()
    try:
        hold_ports(args)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    begun = False
    for attempt in range(args.restarts + 1):
        job = Job(args, attempt, begun)
        status = job.run()
        begun = begun or job.has_begun()
        if job.final or status in (0, USAGE_ERROR, SAVED_ON_SIGNAL):
            break
        if attempt < args.restarts:
            _print(f"launch: restart {attempt + 1} of {args.restarts}\n")
    return status


def _stdin():
    return open(0, "rb", buffering=0, closefd=False)


def _follow_stdin() -> None:
    """Each line is the number of a signal; the end of the input is SIGTERM."""
    with _stdin() as lines:
        for line in lines:
            os.kill(os.getpid(), int(line))
    os.kill(os.getpid(), signal.SIGTERM)


class Job:
    """One attempt of a job, on one node.

    Attributes:
        final: whether the job must not be restarted.
        number: only the ranks of this attempt share it.
        begun: whether an earlier attempt's run had begun; known on the node of rank 0.
    """

    def __init__(self, args: argparse.Namespace, attempt: int = 0, begun: bool = False):
        self.args = args
        self.attempt = attempt
        self.begun = begun
        self.ranks: list[Rank] = []
        self.stop_signal: int | None = None
        self.repeated_signal = RepeatedSignal()
        self.stop_now = False
        self.final = False
        self.peers: Peers | None = None
        self.number = secrets.token_hex(8)

    def run(self) -> int:
        for number in stop_signals():
            signal.signal(number, self._on_signal)
        self.deadlines = DeadlineMonitor(self.args.nproc_per_node)
        try:
            self._find_peers()
            if self.peers is not None and self.peers.job is None:
                status, message = self._not_joined()
            else:
                self._start_ranks()
                status, message = self._wait()
            if self.peers is not None:
                self.peers.end(status, self.final)
        finally:
            self._end()
        for rank in self.ranks:
            rank.stderr.end(shown=status not in (0, USAGE_ERROR, SAVED_ON_SIGNAL))
        _print(message)
        return status

    def has_begun(self) -> bool:
        """Whether the run has taken its output directory."""
        return any(rank.reports.read(BEGUN) for rank in self.ranks)

    def _find_peers(self) -> None:
        """Rendezvous with the other launchers: all nodes but node 0 wait until they have joined."""
        args = self.args
        if args.nnodes == 1:
            return
        port = args.master_port + 1
        if not args.secret and self.attempt == 0:
            print(_NO_SECRET.format(port), file=sys.stderr, flush=True)
        place = args.nnodes, args.node_rank, args.master_addr, port, self.attempt
        try:
            self.peers = Peers(*place, args.secret)
        except OSError as error:
            print(
                f"error: port {port}, of the launchers: {error}; set another PORT on each node",
                file=sys.stderr,
            )
            sys.exit(USAGE_ERROR)
        while self.peers.job is None and self.peers.failure is None and self.stop_signal is None:
            time.sleep(0.05)
        self.number = self.peers.job or ""

    def _not_joined(self) -> tuple[int, str]:
        """Exit status and message without ranks: the rendezvous failed, or a signal ended it."""
        assert self.peers is not None
        if self.peers.failure is None:
            return self._failure_status(1), ""
        return self._end_with_peer()

    def _start_ranks(self) -> None:
        for local_rank in range(self.args.nproc_per_node):
            self.ranks.append(self._start(local_rank))
        if self.stop_signal is not None:  # it came before all ranks had started
            self._forward(self.stop_signal)

    def _start(self, local_rank: int) -> Rank:
        args = self.args
        number = args.node_rank * args.nproc_per_node + local_rank
        deadline_file = self.deadlines.files[local_rank].fileno()
        variables = {
            "MASTER_ADDR": args.master_addr,
            "MASTER_PORT": args.master_port,
            "WORLD_SIZE": args.nnodes * args.nproc_per_node,
            "RANK": number,
            "LOCAL_RANK": local_rank,
            JOB: self.number,
            ATTEMPT: self.attempt,
            GOES_ON: int(self.begun),
            DEADLINE_FILE: deadline_file,
        }
        env = dict(os.environ, **{name: str(value) for name, value in variables.items()})
        env.pop(SECRET, None)
        configure_environment(args.nproc_per_node, env)
        stdin = subprocess.DEVNULL if args.stdin_control else None
        return Rank(number, args.command, env, deadline_file, stdin)

    def _wait(self) -> tuple[int, str]:
        """Wait until the job ends or must be ended; returns its exit status and message."""
        leaving = None
        while not self.stop_now:
            states = self._states()
            ended = [state for state in states if state is not None]
            failed = [state for state in ended if state not in (0, SAVED_ON_SIGNAL)]
            if failed:
                failure = self._first_failure()
                if failure is not None:
                    return failure
                continue
            if self.peers is not None and self.peers.failure is not None:
                return self._end_with_peer()
            if len(ended) == len(states):
                return max(ended), ""
            overdue = self.deadlines.overdue([rank.process for rank in self.ranks])
            if overdue:
                return self._end_overdue(overdue)
            if self.stop_signal is not None or SAVED_ON_SIGNAL in ended:
                leaving = leaving or time.monotonic()
                if time.monotonic() > max(leaving, self.deadlines.running.time) + SAVE_SECONDS:
                    break
            time.sleep(0.05)
        return 128 + (self.stop_signal or signal.SIGTERM), ""

    def _states(self) -> list[int | None]:
        """Exit status of each rank, None while it runs. Once a rank has reported that all have
        finished, a rank that has ended has the reported status."""
        states = [rank.process.poll() for rank in self.ranks]
        reported = [rank.reports.read(FINISHED) for rank in self.ranks]
        if any(reported):
            status = int(next(filter(None, reported)))
            states = [state and status for state in states]
        return states

    def _end_overdue(self, overdue: dict[int, str]) -> tuple[int, str]:
        dump_stacks([self.ranks[local_rank].process for local_rank in overdue])
        text = "".join(
            f"launch: the job is ended: rank {self.ranks[local_rank].number}: {why}\n"
            for local_rank, why in overdue.items()
        )
        return self._failure_status(1), text

    def _failure_status(self, status: int) -> int:
        """Exit status of a job that fails with ``status``: after a stop signal, that of the
        signal."""
        return status if self.stop_signal is None else 128 + self.stop_signal

    def _end_with_peer(self) -> tuple[int, str]:
        """Prints the message at once: the launcher of the failed node prints its report last."""
        assert self.peers is not None and self.peers.failure is not None
        status, text, final = self.peers.failure
        self.final = self.final or final
        _print(text)
        return status, ""

    def _first_failure(self) -> tuple[int, str] | None:
        """Exit status and message of the rank that failed first, or of a node that was lost; None
        if another rank has reported meanwhile that all have finished."""
        time.sleep(_OTHER_FAILURES_SECONDS)
        states, failed = self._states(), []
        for local_rank, (state, rank) in enumerate(zip(states, self.ranks)):
            if state is None or state in (0, SAVED_ON_SIGNAL):
                continue
            order = rank.failure_order(state, USAGE_ERROR in states)
            if self._stopped(state):
                order = _STOPPED
            failed.append((order, local_rank, state))
        if not failed:
            return None
        order, local_rank, state = min(failed)
        if order == _STOPPED:
            return self._failure_status(1), ""
        aborted = order[0] == 2 and state == -signal.SIGABRT
        if aborted and self._peer_failed():
            return self._end_with_peer()
        status, text = self.ranks[local_rank].failure(state)
        return self._failure_status(status), text

    def _stopped(self, state: int) -> bool:
        """Whether a stop signal has ended a rank, as one that does not save at the signal."""
        number = -state if state < 0 else state - 128
        return self.stop_signal is not None and number in STOP_SIGNALS

    def _peer_failed(self) -> bool:
        deadline = time.monotonic() + _PEER_REPORT_SECONDS
        if self.peers is None:
            return False
        while self.peers.failure is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.peers.failure is not None

    def _on_signal(self, number, frame) -> None:
        """The ranks may save; only the same signal again, after a while, ends them at once."""
        if self.repeated_signal.add(number):
            self.stop_now = True
        if self.stop_signal is None:
            self.stop_signal = number
            self.final = True
            name = signal.Signals(number).name
            _print(
                f"launch: {name}: the ranks have to end; send {name} again after "
                f"{REPEAT_SECONDS} s to end them at once\n"
            )
            self._forward(number)

    def _forward(self, number: int) -> None:
        for rank in self.ranks:
            if rank.process.poll() is None:
                rank.process.send_signal(number)

    def _end(self) -> None:
        """SIGTERM to every rank, SIGKILL to those left after the grace."""
        for rank in self.ranks:
            rank.signal_group(signal.SIGTERM)
        deadline = time.monotonic() + (0 if self.stop_now else GRACE_SECONDS)
        while time.monotonic() < deadline and any(r.process.poll() is None for r in self.ranks):
            time.sleep(0.05)
        for rank in self.ranks:
            rank.signal_group(signal.SIGKILL)
            rank.process.wait()


def _print(text: str) -> None:
    """Also from a signal handler, and if the terminal is gone."""
    try:
        os.write(2, text.encode())
    except OSError:
        pass
