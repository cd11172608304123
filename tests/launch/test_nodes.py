"""Jobs of several machines, with small programs as ranks and a false ``ssh`` and ``srun``."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from jobs import LAUNCH, alive, wait_for

from libai_ext.launch import nodes

ROOT = Path(__file__).resolve().parents[2]
# What ssh does with a command: a shell on the other side, without this one's variables.
SSH = """#!/bin/bash
[ "$1 $2" = "-o BatchMode=yes" ] || exit 99
echo "$3" >> {folder}/hosts
echo "$4" >> {folder}/commands
[ "$3" = closed ] && exit 255
exec env -i PATH="$PATH" bash -c "cd / && $4"
"""
SRUN = """#!/bin/bash
echo "$1 $2 $3 $4 $5" >> {folder}/srun
shift 5
export SLURM_STEP_ID=0 SLURM_STEP_NUM_NODES=2 SLURM_STEP_NUM_TASKS=2
export SLURM_STEP_NODELIST='localhost,other'
SLURM_NODEID=0 "$@" & first=$!
SLURM_NODEID=1 "$@" || status=$?
wait $first
exit ${{status:-$?}}
"""


@pytest.fixture
def world(tmp_path):
    """Environment with the false commands, and what they leave in ``tmp_path``."""
    for name, text in (("ssh", SSH), ("srun", SRUN)):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.format(folder=tmp_path))
        path.chmod(0o755)
    env = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    return dict(env, PATH=f"{path.parent}:{env['PATH']}", PYTHONPATH=str(ROOT))


@pytest.fixture
def program(program):
    """Each rank prints its place first."""
    show = (
        "keys = 'RANK WORLD_SIZE MASTER_ADDR MASTER_PORT NCCL_DEBUG SECRET'.split()\n"
        "shown = ' '.join(os.environ.get(k, '-') for k in keys)\n"
        "os.write(1, f'{shown} {os.getcwd()}\\n'.encode())\n"
    )
    return lambda body: str(program(show + body))


def pair(path, port, *options):
    """The launchers of two nodes."""
    words = ["--nnodes", "2", "--master-port", str(port), *options]
    return [
        subprocess.Popen(
            [*LAUNCH, "1", *words, "--node-rank", str(rank), path],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


@pytest.mark.parametrize(
    "text, name",
    [
        ("node7", "node7"),
        ("node[01-03,7]", "node01"),
        ("a[9-10]-ib,b", "a9-ib"),
        ("r[1-2]n[0,5]", "r1n0"),
        ("gpu[7],node[1-3]", "gpu7"),
        ("a-b.c,node[1-3]", "a-b.c"),
    ],
)
def test_slurms_lists(text, name):
    assert nodes.first_host(text) == name


@pytest.mark.parametrize("text", ["", "a[1-", ",b", "a[x]", "a[]", "[1-2"])
def test_what_is_no_list(text):
    with pytest.raises(ValueError, match="cannot read the list of nodes"):
        nodes.first_host(text)


def test_the_place_of_a_task_under_srun():
    env = {
        "SLURM_JOB_ID": "1234567",
        "SLURM_STEP_ID": "0",
        "SLURM_NNODES": "4",
        "SLURM_NTASKS": "4",
        "SLURM_NODEID": "2",
        "SLURM_JOB_NODELIST": "gpu[08-11]",
    }
    assert nodes.slurm(env) == nodes.Nodes(4, 2, "gpu08", 10000 + 2 * 4567)
    assert nodes.srun(env) is None
    with pytest.raises(ValueError, match="8 tasks on 4 nodes"):
        nodes.slurm({**env, "SLURM_NTASKS": "8"})
    assert nodes.slurm({**env, "SLURM_NNODES": "1", "SLURM_NTASKS": "1"}) is None
    del env["SLURM_STEP_ID"]
    assert nodes.slurm(env) is None
    expected = ["srun", "--nodes=4", "--ntasks=4", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    assert nodes.srun(env) == expected
    assert nodes.srun({**env, "SLURM_CPUS_PER_TASK": "6"}) == [*expected, "--cpus-per-task=6"]
    assert nodes.srun({}) is nodes.slurm({}) is None


def test_one_call_in_an_allocation_starts_every_node(world, program, tmp_path):
    path = program("time.sleep(0.5)\nsys.exit(0)\n")
    slurm = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "1",
    }
    out = subprocess.run(
        ["bash", "tools/train.sh", path, "CONFIG", "1"],
        cwd=ROOT,
        env={**world, **slurm},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert out.returncode == 0, out.stderr
    port = nodes.job_port(os.getpid())
    rows = sorted(line.split()[:4] for line in out.stdout.splitlines())
    assert rows == [[str(rank), "2", "localhost", str(port)] for rank in range(2)]
    assert "JOB_SECRET" not in out.stderr  # it has one
    expected = "--nodes=2 --ntasks=2 --ntasks-per-node=1 --kill-on-bad-exit=1"
    expected += " --cpus-per-task=1\n"
    assert (tmp_path / "srun").read_text() == expected


def host_file(tmp_path, *hosts):
    path = tmp_path / "hosts.txt"
    path.write_text("# two\n" + "".join(f"{host}\n\n" for host in hosts))
    return str(path)


def test_one_call_with_a_host_file_starts_every_node(world, program, tmp_path, port):
    path = program(
        "names = 'AWS_SECRET_ACCESS_KEY', 'https_proxy', 'WANDB_MODE'\n"
        "os.write(1, f'{[os.environ.get(name) for name in names]}\\n'.encode())\n"
        "time.sleep(0.5)\n"
    )
    env = dict(world, HOSTFILE=host_file(tmp_path, "me@localhost", "b"), PORT=str(port))
    env.update(NCCL_DEBUG="a b", SECRET="mine")
    private = {"AWS_SECRET_ACCESS_KEY": "k'é", "https_proxy": "u:p@h", "WANDB_MODE": "offline"}
    env.update(private)
    out = subprocess.run(
        ["bash", "tools/train.sh", path, "CONFIG", "1", "key=it's"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert out.returncode == 0, out.stderr
    assert sorted(out.stdout.splitlines()) == [
        *(f"{rank} 2 localhost {port} a b - {ROOT}" for rank in range(2)),
        *[str(list(private.values()))] * 2,
    ]
    assert sorted((tmp_path / "hosts").read_text().split()) == ["b", "me@localhost"]
    assert not [value for value in private.values() if value in (tmp_path / "commands").read_text()]
    assert "JOB_SECRET" not in out.stderr


def test_the_first_failure_ends_all_hosts(world, program, tmp_path, port):
    path = program("if rank == 1: sys.exit(7)\ntime.sleep(600)\n")
    env = dict(world, HOSTFILE=host_file(tmp_path, "localhost", "b"))
    command = [*LAUNCH, "1", "--master-port", str(port), path]
    out = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert out.returncode == 7
    assert "rank 1 ended with exit status 7" in out.stderr
    assert "node 1 ended with status 7" in out.stderr
    assert alive(tmp_path) == []


def test_a_host_that_cannot_be_reached_ends_the_job(world, program, tmp_path, port):
    path = program("time.sleep(600)\n")
    env = dict(world, HOSTFILE=host_file(tmp_path, "closed", "b"))
    command = [*LAUNCH, "1", "--master-port", str(port), path]
    out = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert out.returncode == 255
    assert "launch: ssh to closed failed" in out.stderr
    assert alive(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_ending_the_call_ends_all_hosts(world, program, tmp_path, port, number):
    path = program("time.sleep(600)\n")
    env = dict(world, HOSTFILE=host_file(tmp_path, "localhost", "b"))
    job = subprocess.Popen(
        [*LAUNCH, "1", "--master-port", str(port), path], env=env, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: len(alive(tmp_path)) == 2)
    job.send_signal(number)
    assert job.wait(30) == (-number if number == signal.SIGKILL else 128 + number)
    wait_for(lambda: alive(tmp_path) == [])


@pytest.mark.parametrize(
    "text, message",
    [(None, "No such file"), ("", "one host a line"), ("a 8", "not 'a 8'"), ("a\na", "twice")],
)
def test_bad_host_files(world, tmp_path, text, message):
    path = tmp_path / "hosts.txt"
    if text is not None:
        path.write_text(text)
    env = dict(world, HOSTFILE=str(path))
    out = subprocess.run(
        [*LAUNCH, "1", "x.py"], env=env, capture_output=True, text=True, timeout=60
    )
    assert (out.returncode, message in out.stderr) == (2, True), out.stderr


def test_a_node_that_fails_ends_the_others(program, tmp_path, port):
    """Also those whose ranks notice nothing, and with its status."""
    path = program("if rank == 0: time.sleep(0.5); sys.exit(9)\ntime.sleep(600)\n")
    jobs = pair(path, port)
    errors = [job.communicate(timeout=30)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [9, 9]
    assert all("JOB_SECRET is not set: until all nodes have connected" in text for text in errors)
    assert "rank 0 ended with exit status 9" in errors[0]
    assert "launch: node 0 ended with status 9" in errors[1]
    assert alive(tmp_path) == []


def test_the_cause_goes_before_an_abort_for_a_lost_peer(program, port):
    path = program("if rank == 1: os.abort()\ntime.sleep(0.5)\nsys.exit(9)\n")
    jobs = pair(path, port)
    errors = [job.communicate(timeout=30)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [9, 9]
    assert "SIGABRT" not in "".join(errors)


def test_a_killed_launcher_is_a_lost_node(program, tmp_path, port):
    path = program("time.sleep(600)\n")
    jobs = pair(path, port)
    wait_for(lambda: len(alive(tmp_path)) == 2)
    time.sleep(1)  # the launchers meet
    jobs[1].kill()
    assert "launch: lost node 1" in jobs[0].communicate(timeout=30)[1]
    assert jobs[0].returncode == 1
    wait_for(lambda: alive(tmp_path) == [])


def test_all_nodes_restart_after_a_crash(program, port):
    path = program(
        "attempt = os.environ['LIBAI_EXT_ATTEMPT']\n"
        "if rank == 1 and attempt == '0': sys.exit(3)\n"
        "time.sleep(600 if attempt == '0' else 1)\n"
    )
    jobs = pair(path, port, "--restarts", "1")
    errors = [job.communicate(timeout=40)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0]
    assert all("launch: restart 1 of 1" in text for text in errors)


def test_a_taken_port_is_said(program, port):
    with socket.create_server(("", port + 1)):
        job, other = pair(program(""), port)
        error = job.communicate(timeout=30)[1]
        other.kill()
    assert (job.returncode, other.wait(30)) == (2, -signal.SIGKILL)
    assert f"port {port + 1}" in error and "set another PORT" in error
