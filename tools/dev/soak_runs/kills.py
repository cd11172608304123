"""Kills jobs, or disturbs one of their processes, and resumes them until they are done."""

from __future__ import annotations

import itertools
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
from soak_runs.job import OPTIONS, Job, make_images

from libai_ext.checkpoint import manifest
from libai_ext.checkpoint.errors import CheckpointError

ITERATIONS = 40
KILLS_PER_JOB = 5
# A disturbed job has to end by itself in this time, which includes that of its watchdog.
MAX_SECONDS = 300


def kill(job: Job, inside_save: bool, seconds: float, rng: random.Random) -> str:
    """Start the job and kill it at a random time; returns where it was.

    Args:
        seconds: duration of an undisturbed run.
    """
    left_before = job.partial()
    process = job.start()
    deadline = time.monotonic() + rng.uniform(0, seconds)
    saves_to_pass = rng.randrange(4)
    saving = False
    while process.poll() is None:
        if inside_save:
            was_saving, saving = saving, bool(job.partial() - left_before)
            if saving and not was_saving:
                if saves_to_pass == 0:
                    time.sleep(rng.uniform(0, 0.01))
                    break
                saves_to_pass -= 1
        elif time.monotonic() > deadline:
            break
        time.sleep(0.0003)
    if process.poll() is not None:
        return "ended before"
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    psutil.wait_procs(family, timeout=30)
    if job.partial() - left_before:
        return "inside a save"
    return "training" if job.checkpoints() else "before the first checkpoint"


# What happens to one process of a job, and the allowed exit statuses: 0 if the job continues, 75 if
# it saves and exits.
DISTURBANCES = {
    ("worker", "stopped"): (0,),
    ("worker", "stopped for 1 s"): (0,),
    ("worker", "terminated"): (0,),
    ("worker", "killed"): (0,),
    ("rank", "stopped"): (0, 1),
    ("rank", "stopped for 1 s"): (0,),
    ("rank", "terminated"): (0, 75, 128 + signal.SIGTERM),
    ("rank", "killed"): (0, 128 + signal.SIGKILL),
}
SIGNALS = {"terminated": signal.SIGTERM, "killed": signal.SIGKILL}


def disturb(job: Job, seconds: float, rng: random.Random) -> tuple[str, str | None]:
    """Stop, terminate or kill a data worker or a rank at a random time, and wait for the job to end
    by itself; returns what was done, and the fault of its end or None."""
    lines_before = job.lines()
    process = job.start()
    time.sleep(rng.uniform(0, seconds))
    ranks = [child for child in _children(process.pid) if _is_rank(child)]
    workers = [child for rank in ranks for child in _children(rank.pid) if _is_fork(child, rank)]
    role, how = rng.choice(sorted(DISTURBANCES))
    victims = workers if role == "worker" and workers else ranks
    if process.poll() is not None:
        return "ended before", None
    if not victims:  # the launcher is not there yet
        process.kill()
        process.wait()
        return "before the first checkpoint", None
    role = "worker" if victims is workers else "rank"
    if how == "stopped" and job.lines() == lines_before:
        how = "stopped for 1 s"  # the start may take longer than MAX_SECONDS
    _do(rng.choice(victims), how)
    family = psutil.Process(process.pid).children(recursive=True)
    try:
        status = process.wait(MAX_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        status = None
    psutil.wait_procs(family, timeout=30)
    fault = f"{job.folder}: a {role} was {how}, then the status was {status}"
    return f"{role} {how}", None if status in DISTURBANCES[role, how] else fault


def _children(pid: int) -> list[psutil.Process]:
    """None of a process that has ended."""
    try:
        return psutil.Process(pid).children()
    except psutil.Error:
        return []


def _is_rank(child: psutil.Process) -> bool:
    """Not so the programs that ``train.sh`` runs before the launcher."""
    try:
        return any(part.endswith("train_net.py") for part in child.cmdline())
    except psutil.Error:
        return False


def _is_fork(child: psutil.Process, rank: psutil.Process) -> bool:
    try:
        return child.cmdline() == rank.cmdline()
    except psutil.Error:
        return False


def _do(victim: psutil.Process, how: str) -> None:
    try:
        victim.send_signal(SIGNALS.get(how, signal.SIGSTOP))
        if how == "stopped for 1 s":
            time.sleep(1)
            victim.send_signal(signal.SIGCONT)
    except psutil.NoSuchProcess:
        pass


def unreadable(job: Job) -> list[str]:
    damaged = []
    for path in job.checkpoints():
        try:
            manifest.verify(path)
        except CheckpointError as error:
            damaged.append(str(error))
    return damaged


def kill_test(folder: Path, kills: int, processes: list[int], seed: int) -> bool:
    """Print a table; returns whether there were no faults."""
    rng = random.Random(seed)
    images = folder / "images"
    make_images(images)
    print(HEADING)
    good, done = True, 0
    layouts = [
        (number, graph, config)
        for configs in (list(OPTIONS), list(OPTIONS)[::-1])
        for number in processes
        for graph, config in zip((False, True), configs)
    ]
    for index, layout in enumerate(layouts):
        share = kills // len(layouts) + (index < kills % len(layouts))
        if share:
            good = kill_one_layout(folder, images, layout, share, done, rng) and good
            done += share
    return good


HEADING = (
    "processes  mode   config           kills  inside a save  before the 1st checkpoint  disturbed"
    "  unreadable  differs  hangs  left"
)


def kill_one_layout(
    folder: Path,
    images: Path,
    layout: tuple[int, bool, str],
    share: int,
    before: int,
    rng: random.Random,
) -> bool:
    """One row of the table. Every third kill is inside a save, every third disturbs one process.

    Args:
        share: kills of this layout.
        before: kills of earlier layouts.
    """
    number, graph, config = layout
    mode = "graph" if graph else "eager"

    def made(what) -> Job:
        path = folder / f"{number}-{mode}-{config}-{what}"
        return Job(images, path, number, graph, ITERATIONS, config)

    reference = made("reference")
    seconds = reference.finish()
    expected = reference.result()
    assert [line["iteration"] for line in expected["metrics"]] == [*range(1, ITERATIONS + 1)]
    where: dict[str, int] = {}
    faults: dict[str, list[str]] = {"damaged": [], "differing": [], "hanging": [], "left": []}
    done = jobs = disturbed = 0
    while done < share:
        job = made(jobs)
        jobs += 1
        for _ in range(min(KILLS_PER_JOB, share - done)):
            turn, fault = (before + done) % 3, None
            if turn == 1:
                place, fault = disturb(job, seconds, rng)
                disturbed += place != "ended before"
            else:
                place = kill(job, turn == 0, seconds, rng)
            faults["hanging"] += [] if fault is None else [fault]
            faults["damaged"] += unreadable(job)
            where[place] = where.get(place, 0) + 1
            if place == "ended before":
                break
            done += 1
        job.finish()
        result = job.result()
        faults["differing"] += [f"{job.folder}: {k}" for k in expected if result[k] != expected[k]]
        faults["left"] += job.leftovers()
    print(
        f"{number:9d}  {mode}  {config:15s}  {done:5d}  {where.get('inside a save', 0):13d}  "
        f"{where.get('before the first checkpoint', 0):25d}  {disturbed:9d}  "
        f"{len(faults['damaged']):10d}  {len(faults['differing']):7d}  {len(faults['hanging']):5d}"
        f"  {len(faults['left']):4d}",
        flush=True,
    )
    print(f"  {', '.join(f'{name}: {count}' for name, count in sorted(where.items()))}")
    for line in itertools.chain(*faults.values()):
        print(f"  {line}")
    return not any(faults.values())
