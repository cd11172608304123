"""Where a run's numbers go: terminal, metrics.jsonl, TensorBoard."""

from __future__ import annotations

import datetime
import json
import logging
import os
import sys
from pathlib import Path

from libai.engine import hooks
from libai.engine.trainer import HookBase
from libai.utils.events import EventStorage, EventWriter, get_event_storage
from tensorboardX import SummaryWriter
from tqdm import tqdm

logger = logging.getLogger(__name__)
_INTERNAL = ("eta_seconds",)


def latest_scalars(storage: EventStorage) -> dict[str, float]:
    """Scalars of the iteration just done, by name; losses are LiBai's ``total_loss``."""
    done = storage.iter
    return {
        name: value
        for name, (value, iteration) in storage.latest().items()
        # Hooks put values before LiBai moves storage.iter on, or after it.
        if iteration in (done, done - 1) and name not in _INTERNAL
    }


class MetricsFile(EventWriter):
    """One JSON object per logging step. ``iteration`` counts optimizer steps done."""

    def __init__(self, path: str, start_iter: int):
        """Lines after ``start_iter``, written by a run that got further than its last
        checkpoint, are dropped: a resumed run writes them again."""
        self.path = Path(path)
        kept = []
        if start_iter and self.path.exists():
            kept = [line for line in self.path.read_text().splitlines() if _upto(line, start_iter)]
        self.path.write_text("".join(line + "\n" for line in kept))
        self.file = self.path.open("a")

    def write(self) -> None:
        storage = get_event_storage()
        line = {"iteration": storage.iter, "samples": storage.samples, **latest_scalars(storage)}
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def _upto(line: str, iteration: int) -> bool:
    try:
        return json.loads(line)["iteration"] <= iteration
    except (ValueError, KeyError):  # cut off by a crash
        return False


class TensorBoard(EventWriter):
    """Scalars and pictures as TensorBoard events under ``output_dir/tensorboard``."""

    def __init__(self, folder: str, start_iter: int):
        self.writer = SummaryWriter(folder, purge_step=start_iter or None)

    def write(self) -> None:
        storage = get_event_storage()
        for name, value in latest_scalars(storage).items():
            self.writer.add_scalar(name, value, storage.iter)
        # LiBai gives no other access to what put_image() took; its own writer reads it here too.
        for name, picture, iteration in storage._vis_data:
            self.writer.add_image(name, picture, iteration)
        storage.clear_images()
        self.writer.flush()  # a run that is killed leaves what it logged

    def close(self) -> None:
        self.writer.close()


class Writing(hooks.PeriodicWriter):
    """Writes every ``period`` iterations, and whenever there was an evaluation."""

    def after_step(self) -> None:
        _, evaluated = next(
            (self.trainer.storage.latest()[name] for name in self.trainer.results), (0, None)
        )
        if evaluated == self.trainer.iter:
            for writer in self._writers:
                writer.write()
        else:
            super().after_step()


class Progress(HookBase):
    """A live bar on a terminal, a line per ``period`` iterations elsewhere; shows what
    :class:`libai_ext.engine.gauges.Gauges` measured."""

    def __init__(self, period: int):
        self.period = period
        self.bar: tqdm | None = None

    def before_train(self) -> None:
        if sys.stderr.isatty():
            self.bar = tqdm(
                total=self.trainer.max_iter,
                initial=self.trainer.start_iter,
                unit="it",
                dynamic_ncols=True,
            )

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self.bar is not None:
            self.bar.set_postfix_str(self._text(), refresh=False)
            self.bar.update()
        elif done % self.period == 0 or done == self.trainer.max_iter:
            width = len(str(self.trainer.max_iter))
            logger.info(f"[{done:{width}d}/{self.trainer.max_iter}] {self._text()}{self._eta()}")

    def after_train(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def _text(self) -> str:
        latest = latest_scalars(self.trainer.storage)
        if self.trainer.skipped:
            return "step left out"
        text = f"loss {latest['total_loss']:.4f}, lr {latest['lr']:.2e}"
        if "images_per_second" in latest:  # LiBai's timer skips the first iterations
            text += f", {latest['images_per_second']:.0f} images/s"
            text += f", data wait {100 * latest['data_wait']:.0f} %"
        for name, value in self.trainer.results.items():
            text += f", {name} {value:.4g}"
        return f"{text}, memory {latest['memory_gib']:.2f} GiB"

    def _eta(self) -> str:
        if "time" not in self.trainer.storage.histories():
            return ""
        left = self.trainer.max_iter - self.trainer.iter - 1
        seconds = self.trainer.storage.history("time").median(100) * left
        return f", left {datetime.timedelta(seconds=int(seconds))}"


def writers(output_dir: str, start_iter: int):
    """The file writers of a run."""
    return [
        MetricsFile(os.path.join(output_dir, "metrics.jsonl"), start_iter),
        TensorBoard(os.path.join(output_dir, "tensorboard"), start_iter),
    ]
