"""Jobs on several machines: in a Slurm allocation, or on a list of hosts by ``ssh``."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Mapping, NamedTuple

# After a node has failed, the others may end by themselves for so long.
GRACE_SECONDS = 20
_SSH_FAILED = 255
# Variables forwarded to other hosts, also those with the prefixes below.
_FORWARDED = ("PYTHONPATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
_FORWARDED_PREFIXES = ("NCCL_", "ONEFLOW_", "GLOG_", "LIBAI_EXT_")
# Those of loggers, servers and caches, in any case. They may hold keys, so they are not on a
# command line, which anybody can read.
_PRIVATE = re.compile(
    r"(AWS|FSSPEC|MLFLOW|WANDB)_.*|NETRC|XDG_CACHE_HOME|(ALL|HTTP|HTTPS|NO)_PROXY", re.IGNORECASE
)


class Nodes(NamedTuple):
    """This machine's place in the job, and the address of node 0."""

    count: int = 1  # type: ignore[assignment]  # a tuple has a method of this name
    rank: int = 0
    address: str = "127.0.0.1"
    port: int | None = None


def job_port(number: int) -> int:
    """A port for job ``number``: even, 10000 ... 29998, below the range of automatic ports. The
    next port is for the launchers."""
    return 10000 + 2 * (number % 10000)


def slurm(env: Mapping[str, str]) -> Nodes | None:
    """The place of this process under ``srun``; None outside of it.

    Raises:
        ValueError: ``srun`` starts several launchers on a node.
    """
    if "SLURM_STEP_ID" not in env or "SLURM_JOB_ID" not in env:
        return None
    count = int(env.get("SLURM_STEP_NUM_NODES") or env.get("SLURM_NNODES") or 1)
    tasks = int(env.get("SLURM_STEP_NUM_TASKS") or env.get("SLURM_NTASKS") or count)
    if count == 1:
        return None
    if tasks != count:
        raise ValueError(
            f"srun started {tasks} tasks on {count} nodes; start one on each node, it starts the "
            "others: srun --ntasks-per-node=1"
        )
    host = first_host(env.get("SLURM_STEP_NODELIST") or env["SLURM_JOB_NODELIST"])
    return Nodes(count, int(env["SLURM_NODEID"]), host, job_port(int(env["SLURM_JOB_ID"])))


def srun(env: Mapping[str, str]) -> list[str] | None:
    """The command that starts a launcher on each node of this Slurm allocation; None without an
    allocation, on one node, or under ``srun``."""
    count = int(env.get("SLURM_JOB_NUM_NODES") or env.get("SLURM_NNODES") or 1)
    if "SLURM_JOB_ID" not in env or "SLURM_STEP_ID" in env or count == 1:
        return None
    command = ["srun", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1"]
    command.append("--kill-on-bad-exit=1")
    if "SLURM_CPUS_PER_TASK" in env:
        # Newer versions do not pass it on from the allocation.
        command.append(f"--cpus-per-task={env['SLURM_CPUS_PER_TASK']}")
    return command


def first_host(hosts: str) -> str:
    """The first host of Slurm's list of nodes: ``gpu[08-11,13],b`` -> gpu08. Containers may lack
    ``scontrol``.

    Raises:
        ValueError: ``hosts`` is not such a list.
    """
    first = re.match(r"((?:[^,\[\]]|\[\d[-,\d]*\])+)(?:,|$)", hosts)
    if first is None:
        raise ValueError(f"cannot read the list of nodes {hosts!r}")
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first[1])


def read_hosts(path: str) -> list[str]:
    """Read a host file: one host a line, ``#`` starts a comment.

    Raises:
        ValueError: the file cannot be read or has another format.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"HOSTFILE: {error}") from None
    hosts = [line for line in (line.split("#")[0].strip() for line in lines) if line]
    wrong = [host for host in hosts if host.split() != [host] or host.startswith("-")]
    if wrong or not hosts:
        raise ValueError(f"HOSTFILE {path}: give one host a line, not {(wrong or [''])[0]!r}")
    if len(set(hosts)) != len(hosts):
        raise ValueError(f"HOSTFILE {path} names a host twice: its launcher starts all its ranks")
    return hosts


def remote_command(arguments: list[str], env: Mapping[str, str]) -> str:
    """Shell command that runs the launcher with ``arguments`` in this directory of another host."""
    chosen = {k: env[k] for k in env if k in _FORWARDED or k.startswith(_FORWARDED_PREFIXES)}
    parts = ["env", *(f"{name}={value}" for name, value in sorted(chosen.items()))]
    parts += [sys.executable, "-m", "libai_ext.launch", *arguments]
    return f"cd {shlex.quote(os.getcwd())} && exec {shlex.join(parts)}"


def private_variables(env: Mapping[str, str]) -> str:
    """The line that gives a launcher the variables which are not in its command."""
    return json.dumps({name: env[name] for name in env if _PRIVATE.fullmatch(name)})


class Hosts:
    """Starts a launcher on each host by ``ssh``, and controls it through its standard input.

    The first line is the secret of the job, since anybody can read a command line; the second one
    has :func:`private_variables`. Each later line is the number of a signal; the launcher acts as
    if it had received it. The end of the input counts as SIGTERM: this process or the connection is
    gone.
    """

    def __init__(self, hosts: list[str], arguments: list[str], port: int | None):
        self.hosts = hosts
        self.arguments = arguments
        self.port = port or job_port(os.getpid())
        self.secret = secrets.token_hex(16)
        self.processes: list[subprocess.Popen] = []

    def run(self, signals: tuple[int, ...]) -> int:
        """Exit status of the first launcher that fails, else 0."""
        for number in signals:
            signal.signal(number, lambda number, frame: self._send(number))
        try:
            for rank in range(len(self.hosts)):
                self.processes.append(self._start(rank))
            return self._wait()
        finally:
            self._end()

    def _start(self, rank: int) -> subprocess.Popen:
        address = self.hosts[0].rpartition("@")[2]
        options = ["--stdin-control", "--nnodes", str(len(self.hosts)), "--node-rank", str(rank)]
        options += ["--master-addr", address, "--master-port", str(self.port)]
        command = remote_command([*options, *self.arguments], os.environ)
        process = subprocess.Popen(
            ["ssh", "-o", "BatchMode=yes", self.hosts[rank], command],
            stdin=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # this process passes Ctrl-C on
        )
        _write(process, self.secret)
        _write(process, private_variables(os.environ))
        return process

    def _wait(self) -> int:
        first, leave_by = 0, None
        while leave_by is None or time.monotonic() < leave_by:
            states = [process.poll() for process in self.processes]
            failed = [(state, host) for state, host in zip(states, self.hosts) if state]
            if failed and not first:
                first = failed[0][0]
                leave_by = time.monotonic() + GRACE_SECONDS
                if first == _SSH_FAILED:  # the others would wait for this node
                    print(f"launch: ssh to {failed[0][1]} failed", file=sys.stderr, flush=True)
                    break
            if None not in states:
                break
            time.sleep(0.05)
        return first if first >= 0 else 128 - first

    def _send(self, number: int) -> None:
        for process in self.processes:
            _write(process, str(int(number)))

    def _end(self) -> None:
        """SIGTERM; after the grace a second one, which ends the ranks at once; kill ``ssh``."""
        for _ in range(2):
            self._send(signal.SIGTERM)
            deadline = time.monotonic() + GRACE_SECONDS
            while time.monotonic() < deadline and any(p.poll() is None for p in self.processes):
                time.sleep(0.05)
        for process in self.processes:
            process.kill()
            process.wait()


def _write(process: subprocess.Popen, line: str) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(f"{line}\n".encode())
    except OSError:
        pass
