"""The training runs of a soak test, and their results."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from libai_ext.checkpoint import oneflow_folder

ROOT = Path(__file__).resolve().parents[3]
PERIOD, IMAGES = 4, 64
# The watchdog ends a task that takes longer.
END_SECONDS = 30
OPTIONS = {
    "mae_pretraining": [],
    "mae_finetune": [
        "finetune.enable=False",
        "model.num_classes=2",
        "train.evaluation.eval_epoch=null",
    ],
}
# Differ from run to run.
MEASURED = ("time", "data_time", "images_per_second", "data_wait", "memory_gib")
# All launchers: the program kills them when it ends.
started: list[subprocess.Popen] = []


def end_all() -> None:
    """Kill the launchers that run, and wait until their ranks have ended with them: until then they
    write into folders that are to be removed."""
    for launcher in started:
        if launcher.poll() is None:
            ranks = psutil.Process(launcher.pid).children(recursive=True)
            launcher.kill()
            launcher.wait()
            psutil.wait_procs(ranks, timeout=10)


def make_images(folder: Path) -> None:
    """Random images in two classes."""
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        path = folder / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)


class Job:
    """One training run, started as often as needed.

    Args:
        images: the folder of :func:`make_images`.
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
        self.scratch = folder.with_suffix(".tmp")  # its TMPDIR
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

    def lines(self) -> int:
        """Of ``metrics.jsonl``."""
        path = self.folder / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def start(self) -> subprocess.Popen:
        """Start the run, or resume it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.scratch.mkdir(exist_ok=True)
        env = dict(os.environ, TMPDIR=str(self.scratch))
        resume = ["--resume"] if any(self.folder.iterdir()) else []
        log = self.folder.with_suffix(".txt").open("ab")
        running = subprocess.Popen([*self.command, *resume], stdout=log, stderr=log, env=env)
        started.append(running)
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
        """Partial checkpoints: name and inode, since names are used again."""
        found = set()
        for path in self.folder.glob("model_*.partial"):
            try:
                found.add((path.name, path.stat().st_ino))
            except FileNotFoundError:
                pass
        return found

    def leftovers(self) -> list[str]:
        """Processes and temporary files of a job that has ended."""
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
