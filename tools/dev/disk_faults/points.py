"""Lets every disk operation of saving and pruning fail in turn, or be the last one.

    LD_PRELOAD=SHIM python tools/dev/disk_faults/points.py FOLDER STEP

``tools/dev/soak.py --faults`` builds the shim and starts this. In a folder with two checkpoints and
a best one, the checkpointer writes a third, removes the first, moves ``last_checkpoint``, and
replaces the best. It does so once for each STEP-th of its operations, in a forked process: that
operation fails (input/output error; no space, from there on), or the process is killed there. It
also makes the states that a loss of power can leave at each operation. Every time, the checkpoint
of a resumed run must be valid, have the saved values, and be the new one if the save succeeded. The
next save must succeed and remove the remains.
"""

from __future__ import annotations

import ctypes
import errno
import json
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
from disk import SURVIVORS, Disk, put, read_record, take

from libai_ext.startup import start

start()
# OneFlow must be started before these.
from libai_ext.checkpoint import manifest, oneflow_folder, pointer  # noqa: E402
from libai_ext.checkpoint.checkpointer import Checkpointer  # noqa: E402
from libai_ext.checkpoint.errors import CheckpointError  # noqa: E402
from libai_ext.checkpoint.host_state import HostTensor  # noqa: E402

FIRST, SECOND, BEST, THIRD, FOURTH = 3, 7, 5, 11, 14
KEPT = 2
LATEST, NAME_OF_BEST = f"model_{THIRD:07d}", "model_best"
# The error, and whether all later operations fail too.
FAULTS = {"kill": (0, False), "error": (errno.EIO, False), "no space": (errno.ENOSPC, True)}
shim = ctypes.CDLL(None)


class Outcome(NamedTuple):
    """Which saves reported success; none if the process was killed."""

    latest: bool
    best: bool


def save(folder: Path, name: str, iteration: int, is_latest: bool = True) -> bool:
    """Save as a run does, without an engine; returns whether it reports success."""
    checkpointer = Checkpointer(None, str(folder), max_to_keep=KEPT)
    weights = HostTensor(np.full(99, iteration, np.float32))
    state = {"model": {"weight": weights}, "optimizer": {"momentum": weights, "step": iteration}}
    progress = json.dumps({"iteration": iteration})
    checkpointer._try_to_write(name, state, iteration, progress, is_latest, {})
    return checkpointer.failure is None


def in_child(work: Callable[[], int]) -> int | None:
    """Run ``work`` in a forked process: its result, below 127; None if it was killed."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(work())
        finally:
            os._exit(127)
    status = os.waitpid(child, 0)[1]
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else None


def run(folder: Path, number: int, fault: str, exchanges: bool, record: int = -1) -> Outcome:
    """The saves, with a fault at operation ``number``; -1: without one."""

    def work() -> int:
        what, stays = FAULTS[fault]
        shim.faults_arm(os.fsencode(folder), number, what, stays, exchanges, record)
        latest = save(folder, LATEST, THIRD)
        if record >= 0:
            os.write(record, f"saved\t0\t0\t\t\t{0}\n".encode())
        return 1 + latest + 2 * save(folder, NAME_OF_BEST, THIRD, is_latest=False)

    code = in_child(work)
    code = 0 if code is None else code - 1
    return Outcome(bool(code & 1), bool(code & 2))


def contents(path: Path) -> float:
    """The value of all weights of a checkpoint.

    Raises:
        CheckpointError: it is damaged.
    """
    manifest.verify(path)
    model = oneflow_folder.load(path / "model")["weight"]
    momentum = oneflow_folder.load(path / "optimizer")["momentum"]
    values = {float(value) for value in [*model, *momentum]}
    if len(values) != 1:
        raise CheckpointError(f"{path}: weights {values}")
    return values.pop()


def faults_of(folder: Path, outcome: Outcome) -> list[str]:
    """The faults of a folder after the saves."""
    wrong = []
    try:
        latest = contents(Path(Checkpointer(None, str(folder))._latest()))
        if latest not in ((THIRD,) if outcome.latest else (SECOND, THIRD)):
            wrong.append(f"a run would continue from {latest}")
        named = pointer.read(folder)
        if contents(named) not in (SECOND, THIRD):
            wrong.append(f"{pointer.POINTER} names {named.name}")
        best = folder / NAME_OF_BEST
        best = best if best.exists() else best.with_name(f"{NAME_OF_BEST}.old")
        if contents(best) not in ((THIRD,) if outcome.best else (BEST, THIRD)):
            wrong.append(f"the best one holds {contents(best)}")
        if in_child(lambda: 1 + save(folder, f"model_{FOURTH:07d}", FOURTH)) != 2:
            wrong.append("the next save failed")
        names = {path.name for path in folder.iterdir()} - {NAME_OF_BEST, f"{NAME_OF_BEST}.old"}
        periodic = {pointer.POINTER, f"model_{FOURTH:07d}"}
        if names not in (periodic | {LATEST}, periodic | {f"model_{SECOND:07d}"}):
            wrong.append(f"afterwards there are {sorted(names)}")
    except (CheckpointError, OSError, KeyError) as error:
        wrong.append(str(error))
    return wrong


class Enumeration:
    """Counts the points of failure, and lists those that were not survived.

    Args:
        scratch: an empty folder.
        exchanges: whether the file system can exchange two names (NFS cannot).
        step: test every ``step``-th operation.
    """

    def __init__(self, scratch: Path, exchanges: bool, step: int = 1):
        self.step = step
        self.folder, self.before = scratch / "run", scratch / "before"
        self.record, self.exchanges = scratch / "record", exchanges
        self.points: dict[str, int] = {}
        self.wrong: list[str] = []
        self._fresh(None)
        for iteration in (FIRST, SECOND):
            save(self.folder, f"model_{iteration:07d}", iteration)
        save(self.folder, NAME_OF_BEST, BEST, is_latest=False)
        self.folder.rename(self.before)

    def _fresh(self, source: Path | None) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if source is None:
            self.folder.mkdir()
        else:
            shutil.copytree(source, self.folder)

    def _count(self, fault: str, number: int, wrong: list[str]) -> None:
        self.points[fault] = self.points.get(fault, 0) + 1
        self.wrong += [f"{fault} at operation {number}: {text}" for text in wrong]

    def operations(self) -> tuple[list, Disk]:
        """The operations of a run without a fault, and the disk before it. Checks the record
        against the files of the run."""
        self._fresh(self.before)
        disk, before = Disk(self.folder), Disk(self.folder)
        with self.record.open("w+b") as file:
            outcome = run(self.folder, -1, "kill", self.exchanges, file.fileno())
            assert outcome == Outcome(True, True)
            file.seek(0)
            found = list(read_record(file))
        for operation in found:
            if operation.name != "saved":
                disk.apply(operation)
        assert disk.state("all", "all") == take(self.folder), "an operation was not recorded"
        return found, before

    def fail_each(self) -> None:
        number = 0
        while True:
            for fault in FAULTS:
                self._fresh(self.before)
                outcome = run(self.folder, number, fault, self.exchanges)
                if fault == "kill" and outcome == Outcome(True, True):
                    return  # there is no such operation
                self._count(fault, number, faults_of(self.folder, outcome))
            number += self.step

    def lose_power(self) -> None:
        operations, disk = self.operations()
        outcome = Outcome(False, False)
        judged: dict[tuple, list[str]] = {}  # many operations leave the same state
        for number, operation in enumerate(operations):
            if operation.name == "saved":
                outcome = Outcome(True, False)
            else:
                disk.apply(operation)
            outcome = Outcome(outcome.latest, number == len(operations) - 1)
            for names, content in SURVIVORS if number % self.step == 0 else ():
                state = disk.state(names, content)
                key = outcome, frozenset(state.items())
                if key not in judged:
                    shutil.rmtree(self.folder)
                    put(state, self.folder)
                    judged[key] = faults_of(self.folder, outcome)
                self._count("power loss", number, judged[key])


def main() -> int:
    logging.disable(logging.CRITICAL)  # each fault is logged where it happens
    scratch = Path(sys.argv[1])
    wrong = []
    for exchanges in (True, False):
        folder = scratch / ("exchange" if exchanges else "rename")
        folder.mkdir()
        enumeration = Enumeration(folder, exchanges, int(sys.argv[2]))
        enumeration.fail_each()
        enumeration.lose_power()
        points = ", ".join(f"{fault} {count}" for fault, count in enumeration.points.items())
        total = sum(enumeration.points.values())
        lost = len({text.split(": ")[0] for text in enumeration.wrong})
        how = "names are exchanged" if exchanges else "names cannot be exchanged"
        print(f"{how}: {total} points ({points}), {total - lost} survived", flush=True)
        wrong += enumeration.wrong
    for text in wrong:
        print(f"  {text}")
    return 1 if wrong else 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)
