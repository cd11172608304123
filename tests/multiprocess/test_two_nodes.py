"""Two machines, as two network namespaces of this one with a cable between them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hostile_peer import ATTACKS

ROOT = Path(__file__).resolve().parents[2]
ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = 29400
ITERATIONS, SAVED_AT = 50, 10


def ip(*words):
    subprocess.run(["ip", *words], check=True)


@pytest.fixture
def machines(superuser):
    """Names of two namespaces that reach each other at :data:`ADDRESSES`."""
    names = [f"libai{os.getpid()}{side}" for side in "ab"]
    try:
        for name in names:
            ip("netns", "add", name)
        ends = [f"veth{os.getpid()}{side}"[-15:] for side in "ab"]
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for name, end, address in zip(names, ends, ADDRESSES):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "address", "add", f"{address}/24", "dev", end)
            for device in (end, "lo"):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False)


def processes(machine):
    """Pids that run in a namespace."""
    out = subprocess.run(["ip", "netns", "pids", machine], capture_output=True, text=True)
    return [int(pid) for pid in out.stdout.split()]


def losses(folder):
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {(line := json.loads(text))["iteration"]: line["total_loss"] for text in lines}


def command(digits, folder, processes, *options):
    return [
        *("bash", "tools/train.sh", "projects/MAE/train_net.py"),
        *("projects/MAE/configs/mae_digits.py", str(processes)),
        f"data.train=[{digits}/train]",
        f"train.output_dir={folder}",
        f"train.train_iter={ITERATIONS}",
        "train.warmup_iter=2",
        "train.log_period=1",
        "train.global_batch_size=8",
        f"train.checkpointer.period={SAVED_AT}",
        "model.depth=1",
        "graph.enabled=False",
        "dataloader.train.num_workers=0",
        *options,
    ]


def start(machine, rank, words, output):
    """The launcher of a node, with a host name of its own: the engine tells nodes by it."""
    place = dict(NODE="2", NODE_RANK=str(rank), ADDR=ADDRESSES[0], PORT=str(PORT))
    env = dict(os.environ, **place, JOB_SECRET="of the test")
    inside = f'hostname node{rank} && exec "$@"'
    namespace = ["ip", "netns", "exec", machine, "unshare", "--uts"]
    return subprocess.Popen(
        [*namespace, "bash", "-c", inside, "node", *words],
        cwd=ROOT,
        env=env,
        stdout=output.open("w"),
        stderr=subprocess.STDOUT,
    )


def both(machines, tmp_path, words):
    outputs = [tmp_path / f"node{rank}" for rank in range(2)]
    return [start(*row) for row in zip(machines, range(2), [words] * 2, outputs)], outputs


@pytest.fixture
def hostile(machines, tmp_path):
    """Attacks the launchers' port from the second machine; how many connections it had so far, by
    attack."""
    output = tmp_path / "hostile"
    words = [sys.executable, ROOT / "tests/hostile_peer.py", ADDRESSES[0], str(PORT + 1)]
    with output.open("w") as file:
        peer = subprocess.Popen(["ip", "netns", "exec", machines[1], *words], stdout=file)
    yield lambda: json.loads(output.read_text().rpartition("}")[0].rpartition("\n")[2] + "}")
    peer.kill()
    peer.wait()


@pytest.fixture(scope="module")
def expected(launch, digits, tmp_path_factory):
    """Losses of one process."""
    folder = tmp_path_factory.mktemp("alone")
    launch(*command(digits, folder, 1))
    return losses(folder)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_node_is_lost_and_the_job_resumed(digits, machines, expected, tmp_path, victim):
    run = tmp_path / "run"
    jobs, outputs = both(machines, tmp_path, command(digits, run, 1))
    deadline = time.monotonic() + 100
    while not (run / "last_checkpoint").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (run / "last_checkpoint").exists(), [path.read_text() for path in outputs]
    for pid in processes(machines[victim]):
        os.kill(pid, signal.SIGKILL)
    survivor = 1 - victim
    assert jobs[survivor].wait(60) not in (0, 2, 75), outputs[survivor].read_text()
    assert f"launch: lost node {victim}" in outputs[survivor].read_text()
    assert processes(machines[survivor]) == []
    assert len(losses(run)) < ITERATIONS

    jobs, outputs = both(machines, tmp_path, command(digits, run, 1, "--resume"))
    assert [job.wait(120) for job in jobs] == [0, 0], [path.read_text() for path in outputs]
    assert list(expected) == list(range(1, ITERATIONS + 1))
    assert losses(run) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_a_hostile_peer_changes_nothing(digits, machines, expected, hostile, tmp_path):
    """It has the port to itself until the second node comes, and tries on until the job is over."""
    words = command(digits, tmp_path / "run", 1)
    first = start(machines[0], 0, words, tmp_path / "node0")
    deadline = time.monotonic() + 60
    while (tmp_path / "hostile").stat().st_size == 0 or len(hostile()) < len(ATTACKS):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    time.sleep(1)
    second = start(machines[1], 1, words, tmp_path / "node1")
    assert [job.wait(60) for job in (first, second)] == [0, 0], (tmp_path / "node0").read_text()
    assert losses(tmp_path / "run") == pytest.approx(expected, rel=1e-5)
    assert sum(hostile().values()) > 100
