"""Kill training runs at random moments, resume them, and compare with runs left alone.

    .venv/bin/python tools/soak.py [--kills N] [--processes 1 2] [--folder FOLDER]
    .venv/bin/python tools/soak.py --faults [STEP]
    .venv/bin/python tools/soak.py --iterations N

Small jobs on made images, pre-training and fine-tuning, are killed by SIGKILL, every third time
inside a save, and resumed; every third time one data worker or one rank is stopped, terminated or
killed instead, and the job has to end by itself. After several kills a job may end. Then its
weights, optimizer state, metrics and TensorBoard steps must be those of the job that nobody killed,
to the bit, and no process or file may be left. After every kill each checkpoint must be whole. With
--faults nothing is random and nothing is trained: every operation on the disk of saving and pruning
fails in turn, see tools/disk_faults. With --iterations one job runs that long, and its memory,
files and processes are watched. Exit status 1 when anything differs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from disk_faults.build import enumerate_faults
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from libai_ext.checkpoint import manifest, oneflow_folder
from libai_ext.checkpoint.errors import CheckpointError

ROOT = Path(__file__).resolve().parents[1]
ITERATIONS, PERIOD, IMAGES = 40, 4, 64
KILLS_PER_JOB = 5
# What a job that is disturbed may take to end by itself, its watchdog's time included.
END_SECONDS, MOST_SECONDS = 30, 300
OPTIONS = {
    "mae_pretraining": [],
    "mae_finetune": [
        "finetune.enable=False",
        "model.num_classes=2",
        "train.evaluation.eval_epoch=null",
    ],
}
MAX_GROWTH = 0.02  # of memory after warm-up
# Differ from run to run.
MEASURED = ("time", "data_time", "images_per_second", "data_wait", "memory_gib")
# Ended with this program.
_started: list[subprocess.Popen] = []


def make_images(folder: Path) -> None:
    """Noise, in two classes."""
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        path = folder / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)


class Job:
    """One training run, started as often as needed.

    Args:
        images: what :func:`make_images` made.
        folder: output directory.
        config: a key of ``OPTIONS``.
    """

    def __init__(
        self,
        images: Path,
        folder: Path,
        processes: int,
        graph: bool,
        iterations: int,
        config: str = "mae_pretraining",
    ):
        self.folder = folder
        self.scratch = folder.with_suffix(".tmp")  # for what the job makes elsewhere
        self.command = [
            "bash",
            str(ROOT / "tools/train.sh"),
            str(ROOT / "projects/MAE/train_net.py"),
            str(ROOT / f"projects/MAE/configs/{config}.py"),
            str(processes),
            f"data.train=[{images}]",
            f"data.test=[{images}]",
            f"train.output_dir={folder}",
            f"graph.enabled={graph}",
            "model.arch=mae_vit_digits",
            "model.depth=1",
            "train.global_batch_size=8",
            f"train.train_iter={iterations}",
            "train.warmup_iter=4",
            "train.base_lr=0.01",
            "train.log_period=1",
            f"train.checkpointer.period={PERIOD}",
            "train.checkpointer.max_to_keep=3",
            "train.evaluation.enabled=True",
            f"train.evaluation.eval_period={2 * PERIOD}",
            "train.evaluation.eval_metric=loss",
            f"train.watchdog.end_seconds={END_SECONDS}",
            "train.watchdog.min_seconds=5",
            "dataloader.train.num_workers=1",
            "dataloader.test.num_workers=0",
            *OPTIONS[config],
        ]

    def checkpoints(self) -> list[Path]:
        return [path for path in self.folder.glob("model_*") if path.suffix != ".partial"]

    def start(self) -> subprocess.Popen:
        """Go on with the run that lies there, or begin one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.scratch.mkdir(exist_ok=True)
        env = dict(os.environ, TMPDIR=str(self.scratch))
        resume = ["--resume"] if any(self.folder.iterdir()) else []
        log = self.folder.with_suffix(".txt").open("ab")
        running = subprocess.Popen([*self.command, *resume], stdout=log, stderr=log, env=env)
        _started.append(running)
        return running

    def finish(self) -> float:
        """Run to the end; returns seconds.

        Raises:
            RuntimeError: the run failed.
        """
        started = time.perf_counter()
        status = self.start().wait(timeout=600)
        if status:
            log = self.folder.with_suffix(".txt").read_text(errors="replace")
            raise RuntimeError(f"exit status {status}:\n{log[-3000:]}")
        return time.perf_counter() - started

    def partial(self) -> set[tuple[str, int]]:
        """Checkpoints half written or half removed: name and inode, as names come back."""
        found = set()
        for path in self.folder.glob("model_*.partial"):
            try:
                found.add((path.name, path.stat().st_ino))
            except FileNotFoundError:
                pass
        return found

    def left(self) -> list[str]:
        """Processes and files of the job that has ended, beside its results."""
        option = f"train.output_dir={self.folder}"
        everyone = psutil.process_iter(["cmdline"])
        family = [process for process in everyone if option in (process.info["cmdline"] or [])]
        _, alive = psutil.wait_procs(family, timeout=5)
        files = [*self.scratch.iterdir(), *self.folder.glob("*.partial")]
        return [f"process {process.pid}" for process in alive] + [str(path) for path in files]

    def result(self) -> dict:
        """Everything that must not depend on interruptions."""
        state = {}
        for item in sorted(path for path in (self.folder / "model_final").iterdir()):
            if item.is_dir():
                state[item.name] = _plain(oneflow_folder.load(item))
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        metrics = [
            {name: value for name, value in json.loads(line).items() if name not in MEASURED}
            for line in lines
        ]
        events = EventAccumulator(str(self.folder / "tensorboard")).Reload()
        scalars = {
            tag: [(event.step, event.value) for event in events.Scalars(tag)]
            for tag in events.Tags()["scalars"]
            if tag not in MEASURED
        }
        best = json.loads((self.folder / "model_best" / "progress.json").read_text())
        names = sorted(path.name for path in self.checkpoints())
        return dict(state=state, metrics=metrics, scalars=scalars, best=best, names=names)


def _plain(node):
    """Arrays as type, shape and bytes, so that == compares bits."""
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_plain(value) for value in node]
    if isinstance(node, np.ndarray):
        return (str(node.dtype), node.shape, node.tobytes())
    return node


def kill(job: Job, inside_save: bool, seconds: float, rng: random.Random) -> str:
    """Start the job and kill it at a random moment; says where it was.

    Args:
        seconds: how long an undisturbed run takes.
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


# What happens to one process of a job, and the exit statuses that this may lead to: 0 for work that
# goes on, 75 for a checkpoint and an end.
DEEDS = {
    ("worker", "stopped"): (0,),
    ("worker", "stopped for a moment"): (0,),
    ("worker", "terminated"): (0,),
    ("worker", "killed"): (0,),
    ("rank", "stopped"): (0, 1),
    ("rank", "stopped for a moment"): (0,),
    ("rank", "terminated"): (0, 75, 128 + signal.SIGTERM),
    ("rank", "killed"): (0, 128 + signal.SIGKILL),
}
SIGNALS = {"terminated": signal.SIGTERM, "killed": signal.SIGKILL}


def disturb(job: Job, seconds: float, rng: random.Random) -> tuple[str, str | None]:
    """Stop, terminate or kill a data worker or a rank at a random moment, and wait for the job to
    end by itself; says what was done, and what is wrong with how it ended."""
    process = job.start()
    time.sleep(rng.uniform(0, seconds))
    ranks = psutil.Process(process.pid).children() if process.poll() is None else []
    workers = [child for rank in ranks for child in rank.children() if _is_fork(child, rank)]
    role, how = rng.choice(sorted(DEEDS))
    victims = workers if role == "worker" and workers else ranks
    if process.poll() is not None or not victims:
        return "ended before", None
    role = "worker" if victims is workers else "rank"
    if how == "stopped" and not (job.folder / "metrics.jsonl").exists():
        how = "stopped for a moment"  # the start may take longer than is waited for here
    _do(rng.choice(victims), how)
    family = psutil.Process(process.pid).children(recursive=True)
    try:
        status = process.wait(MOST_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        status = None
    psutil.wait_procs(family, timeout=30)
    fault = f"{job.folder}: a {role} was {how}, then the status was {status}"
    return f"{role} {how}", None if status in DEEDS[role, how] else fault


def _is_fork(child: psutil.Process, rank: psutil.Process) -> bool:
    try:
        return child.cmdline() == rank.cmdline()
    except psutil.Error:
        return False


def _do(victim: psutil.Process, how: str) -> None:
    try:
        victim.send_signal(SIGNALS.get(how, signal.SIGSTOP))
        if how == "stopped for a moment":
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
    """Print a table; returns whether all is as it should be."""
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
    """One row of the table. Every third kill is inside a save, every third is of one process.

    Args:
        share: kills of this layout.
        before: those of others.
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
            kind, fault = (before + done) % 3, None
            if kind == 1:
                moment, fault = disturb(job, seconds, rng)
                disturbed += moment != "ended before"
            else:
                moment = kill(job, kind == 0, seconds, rng)
            faults["hanging"] += [fault] * (fault is not None)
            faults["damaged"] += unreadable(job)
            where[moment] = where.get(moment, 0) + 1
            if moment == "ended before":
                break
            done += 1
        job.finish()
        result = job.result()
        faults["differing"] += [f"{job.folder}: {k}" for k in expected if result[k] != expected[k]]
        faults["left"] += job.left()
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


def watch(folder: Path, iterations: int) -> bool:
    """Memory, file descriptors and processes of one long job; returns whether they stay."""
    make_images(folder / "images")
    job = Job(folder / "images", folder / "job", 1, False, iterations)
    process = job.start()
    samples = []
    while process.poll() is None:
        time.sleep(0.5)
        metrics = job.folder / "metrics.jsonl"
        if not metrics.exists():
            continue
        try:
            family = psutil.Process(process.pid).children(recursive=True)
            trainer = max(family, key=lambda child: child.memory_info().rss)
            samples.append(
                (
                    metrics.read_bytes().count(b"\n"),
                    trainer.memory_info().rss,
                    trainer.num_fds(),
                    len(family),
                )
            )
        except (psutil.Error, ValueError):  # it ended meanwhile
            pass
    if process.returncode:
        raise RuntimeError(f"exit status {process.returncode}")
    first = [sample for sample in samples if 0.1 <= sample[0] / iterations < 0.2]
    last = [sample for sample in samples if 0.9 <= sample[0] / iterations < 1]
    print("              iterations 10-20 %    90-100 %")
    medians = [
        [float(np.median([s[k] for s in part])) for k in (1, 2, 3)] for part in (first, last)
    ]
    for name, before, after in zip(("memory, MiB", "open files", "processes"), *medians):
        scale = 2**20 if "MiB" in name else 1
        print(f"{name:12s} {before / scale:19.1f} {after / scale:11.1f}")
    growth = medians[1][0] / medians[0][0] - 1
    print(f"growth of memory: {100 * growth:.2f} %")
    return growth < MAX_GROWTH and medians[0][1:] == medians[1][1:]


def main() -> int:
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of each restart
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--faults", type=int, nargs="?", const=1, metavar="STEP", help="of the disk, every STEP-th"
    )
    parser.add_argument("--iterations", type=int, help="watch one job of so many instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep what the runs leave, here")
    args = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        try:
            if args.faults:
                good = enumerate_faults(folder, args.faults)
            elif args.iterations:
                good = watch(folder, args.iterations)
            else:
                good = kill_test(folder, args.kills, args.processes, args.seed)
        finally:
            for launcher in _started:
                launcher.kill()  # its ranks end with it
                launcher.wait()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
