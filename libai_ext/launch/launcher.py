"""Start the processes of a job on this machine and end them together.

``python -m libai_ext.launch --nproc-per-node N SCRIPT [ARGS]`` does what
``oneflow.distributed.launch`` does, and keeps its promises: when a rank fails the others are
ended and its own traceback is shown last, when the launcher is told to stop or is killed nothing
stays behind. Of several nodes, each has a launcher; they end together as well. The variables NODE,
NODE_RANK, ADDR and PORT stand for options that are not given.

Exit status: 0; 2 for what the user can mend; 74 when data cannot be read for the present; 75 when a
signal made the ranks save a checkpoint and leave; 128 + the signal when it ended them without one;
1 when a part of the run took too long; else that of the rank that failed first.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time

from libai_ext.errors import ConfigError
from libai_ext.kernels.threads import configure_environment
from libai_ext.launch import nodes, ports
from libai_ext.launch.deadlines import WATCH_FILE, Watchman, show_stacks
from libai_ext.launch.exit_report import (
    ATTEMPT,
    FAILURE,
    JOB,
    MEMORY,
    MOMENT_SECONDS,
    ON_TERMINAL,
    SAVED_ON_SIGNAL,
    SETTLED,
    START,
    USAGE_ERROR,
    WORDS,
    Insistence,
    Words,
    out_of_memory,
    stop_signals,
)
from libai_ext.launch.options import hold_ports, parse
from libai_ext.launch.rendezvous import SECRET, Peers
from libai_ext.launch.standard_error import StandardError

# What a rank gets to end by itself: after its peer failed, and after it was told to save and leave.
GRACE_SECONDS = 5
SAVE_SECONDS = 600
# For the ranks that fail together with the first one to be noticed.
_TOGETHER_SECONDS = 0.5
# For the word of the node whose loss made the engine abort here.
_WORD_SECONDS = 3
# A rank that had too little memory before it could say what it has.
_FULL_AT_ONCE = (
    "before anything was built. Another process holds the GPU: nvidia-smi lists the processes, "
    "CUDA_VISIBLE_DEVICES chooses another GPU"
)
_NO_SECRET = (
    f"launch: {SECRET} is not set: until all nodes have come, whoever reaches port {{}} of node 0 "
    "can pass for one; set the same on each"
)
_PR_SET_PDEATHSIG = 1


def main(argv: list[str] | None = None) -> int:
    """Run the job, again after a crash if asked to; returns its exit status."""
    args = parse(argv, __doc__)
    if args.hosts:
        return nodes.Hosts(args.hosts, args.arguments, args.master_port).run(stop_signals())
    if args.leash:
        args.secret = os.fsdecode(_leash().readline()).strip()
        threading.Thread(target=_follow_leash, daemon=True).start()
    try:
        hold_ports(args)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    for attempt in range(args.restarts + 1):
        job = Job(args, attempt)
        status = job.run()
        if job.final or status in (0, USAGE_ERROR, SAVED_ON_SIGNAL):
            break
        if attempt < args.restarts:
            _say(f"launch: restart {attempt + 1} of {args.restarts}\n")
    return status


def _leash():
    return open(0, "rb", buffering=0, closefd=False)


def _follow_leash() -> None:
    """Numbers of signals come in lines; the end of the input is SIGTERM."""
    with _leash() as leash:
        for line in leash:
            os.kill(os.getpid(), int(line))
    os.kill(os.getpid(), signal.SIGTERM)


class Job:
    """The ranks of one node."""

    def __init__(self, args: argparse.Namespace, attempt: int = 0):
        self.args = args
        self.attempt = attempt
        self.ranks: list[subprocess.Popen] = []
        self.errors: list[StandardError] = []
        self.stop_signal: int | None = None
        self.insistence = Insistence()
        self.stop_now = False
        # Whether there is no point in another attempt.
        self.final = False
        self.peers: Peers | None = None
        # What its ranks have in common, and no others.
        self.number = secrets.token_hex(8)

    def run(self) -> int:
        for number in stop_signals():
            signal.signal(number, self._on_signal)
        self.words = [Words() for _ in range(self.args.nproc_per_node)]
        self.watchman = Watchman(self.args.nproc_per_node)
        try:
            self._meet()
            for local_rank in range(self.args.nproc_per_node):
                self.ranks.append(self._start(local_rank))
                self.errors.append(StandardError(self.ranks[-1].stderr))
            if self.stop_signal is not None:  # it came before the ranks were there to hear it
                self._forward(self.stop_signal)
            status, message = self._wait()
            if self.peers is not None:
                self.peers.end(status, self.final)
        finally:
            self._end()
        for error in self.errors:
            error.end(shown=status not in (0, USAGE_ERROR, SAVED_ON_SIGNAL))
        _say(message)
        return status

    def _meet(self) -> None:
        """Find the other launchers: those of other nodes than 0 wait until they belong to a job."""
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
        while self.peers.job is None and self.peers.verdict is None and self.stop_signal is None:
            time.sleep(0.05)
        self.number = self.peers.job or ""

    def _start(self, local_rank: int) -> subprocess.Popen:
        args = self.args
        env = dict(
            os.environ,
            MASTER_ADDR=args.master_addr,
            MASTER_PORT=str(args.master_port),
            WORLD_SIZE=str(args.nnodes * args.nproc_per_node),
            RANK=str(args.node_rank * args.nproc_per_node + local_rank),
            LOCAL_RANK=str(local_rank),
        )
        env.pop(SECRET, None)
        env[JOB] = self.number
        env[ATTEMPT] = str(self.attempt)
        watched = self.watchman.files[local_rank].fileno()
        words = self.words[local_rank].descriptors()
        env.update({WATCH_FILE: str(watched), WORDS: " ".join(map(str, words))})
        if os.isatty(2):
            columns, lines = os.get_terminal_size(2)
            env.update({ON_TERMINAL: "1", "COLUMNS": str(columns), "LINES": str(lines)})
        configure_environment(args.nproc_per_node, env)
        # A group of its own, so that a rank is ended together with its data workers.
        return subprocess.Popen(
            [sys.executable, "-u", *args.command],
            env=env,
            stdin=subprocess.DEVNULL if args.leash else None,
            stderr=subprocess.PIPE,
            pass_fds=[watched, *words],
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )

    def _wait(self) -> tuple[int, str]:
        """Exit status and what to say, once the job is over or has to be ended."""
        leave_by = None
        while not self.stop_now:
            states = self._states()
            ended = [state for state in states if state is not None]
            failed = [state for state in ended if state not in (0, SAVED_ON_SIGNAL)]
            if self.stop_signal is None and failed:
                return self._cause()
            if self.peers is not None and self.peers.verdict is not None:
                return self._obey()
            if len(ended) == len(states) and not failed:
                return max(ended), ""
            if len(ended) == len(states):
                break
            late = self.watchman.late(self.ranks)
            if late:
                return self._too_late(late)
            if self.stop_signal is not None or SAVED_ON_SIGNAL in ended:
                leave_by = leave_by or time.monotonic() + SAVE_SECONDS
                if time.monotonic() > leave_by:
                    break
            time.sleep(0.05)
        return 128 + (self.stop_signal or signal.SIGTERM), ""

    def _states(self) -> list[int | None]:
        """Exit status of each rank, None for one that runs. Once the work of all is done, by the
        word of one, it is the status that they were to leave with."""
        states = [rank.poll() for rank in self.ranks]
        settled = [status for status in (words.read(SETTLED) for words in self.words) if status]
        if settled:
            states = [state and int(settled[0]) for state in states]
        return states

    def _too_late(self, late: dict[int, str]) -> tuple[int, str]:
        show_stacks([self.ranks[local_rank] for local_rank in late])
        first = self.args.node_rank * self.args.nproc_per_node
        text = "".join(
            f"launch: the job is ended, for rank {first + local_rank}: {what}\n"
            for local_rank, what in late.items()
        )
        return 1 if self.stop_signal is None else 128 + self.stop_signal, text

    def _obey(self) -> tuple[int, str]:
        """Said at once: the words of the rank that failed come last, from the launcher of its
        node."""
        assert self.peers is not None and self.peers.verdict is not None
        status, text, self.final = self.peers.verdict
        _say(text)
        return status, ""

    def _cause(self) -> tuple[int, str]:
        """Which rank failed first, and its own words.

        One that was killed, or that the engine aborted for want of memory, comes before those that
        wrote down why they failed, those in the order of their writing; the last are the ones that
        the engine aborts when a peer is lost. Where one leaves with what the user can mend, a
        crash of its peers counts as such an abort.
        """
        time.sleep(_TOGETHER_SECONDS)
        ranked, states = [], self._states()
        lost = (-signal.SIGABRT, *[-signal.SIGSEGV] * (USAGE_ERROR in states))
        for local_rank, (state, words) in enumerate(zip(states, self.words)):
            if state is None or state in (0, SAVED_ON_SIGNAL):
                continue
            told = words.left_at(FAILURE)
            own = state < 0 and (state not in lost or self._out_of_memory(local_rank))
            order = 0 if own else 1 if told else 2
            ranked.append((order, told, local_rank, state))
        order, _, local_rank, state = min(ranked)
        aborted = order == 2 and state == -signal.SIGABRT
        if aborted and self._peer_failed():
            return self._obey()
        text = self.words[local_rank].read(FAILURE)
        if state == USAGE_ERROR and text:
            return state, text
        memory = self._out_of_memory(local_rank)
        if state == -signal.SIGABRT and memory:
            return USAGE_ERROR, memory
        text = text or self.words[local_rank].read(START)  # of an engine that was not up yet
        taken = re.search(r"Port (\d+) is unavailable", text)
        if taken:  # by a program that came after the launcher had looked
            return USAGE_ERROR, f"error: {ports.refusal(taken[1], 'a program took it')}\n"
        how = f"exit status {state}" if state > 0 else signal.Signals(-state).name
        rank = self.args.node_rank * self.args.nproc_per_node + local_rank
        return (
            state if state > 0 else 128 - state
        ), f"launch: rank {rank} ended with {how}\n{text}"

    def _out_of_memory(self, local_rank: int) -> str:
        """What to say if the engine has aborted this rank since its GPU is full."""
        foreseen = self.words[local_rank].read(MEMORY) or _FULL_AT_ONCE
        return out_of_memory(self.errors[local_rank].last_words(), foreseen)

    def _peer_failed(self) -> bool:
        deadline = time.monotonic() + _WORD_SECONDS
        if self.peers is None:
            return False
        while self.peers.verdict is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.peers.verdict is not None

    def _on_signal(self, number, frame) -> None:
        """The ranks may save; only the same signal again, after a moment, leaves at once."""
        if self.insistence.add(number):
            self.stop_now = True
        if self.stop_signal is None:
            self.stop_signal = number
            self.final = True
            name = signal.Signals(number).name
            _say(
                f"launch: {name}: the ranks are told to end; {name} again after "
                f"{MOMENT_SECONDS} s ends them at once\n"
            )
            self._forward(number)

    def _forward(self, number: int) -> None:
        for rank in self.ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    def _end(self) -> None:
        """SIGTERM to every rank, SIGKILL to what is left after the grace."""
        for rank in self.ranks:
            _signal_group(rank, signal.SIGTERM)
        deadline = time.monotonic() + (0 if self.stop_now else GRACE_SECONDS)
        while time.monotonic() < deadline and any(r.poll() is None for r in self.ranks):
            time.sleep(0.05)
        for rank in self.ranks:
            _signal_group(rank, signal.SIGKILL)
            rank.wait()


def _say(text: str) -> None:
    """Also from a signal handler, and where the terminal is gone."""
    try:
        os.write(2, text.encode())
    except OSError:
        pass


def _signal_group(process: subprocess.Popen, number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass


def _die_with_parent() -> None:
    """Runs in the child: the kernel ends it when the launcher dies, even by SIGKILL."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
