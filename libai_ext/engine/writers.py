"""Files that get a run's metrics at each logging step."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Sequence

from libai.engine.hooks import PeriodicWriter
from libai.utils.events import EventStorage, EventWriter, get_event_storage

from libai_ext.engine.retrying_writer import RetryingWriter, latest_scalars
from libai_ext.engine.tensorboard import TensorBoard
from libai_ext.files.atomic import write_text

logger = logging.getLogger(__name__)


class MetricsFile(RetryingWriter):
    """One JSON object per logging step. ``iteration`` counts optimizer steps done."""

    def __init__(self, path: str, start_iter: int):
        """Drops lines after ``start_iter``: the run got further than its last checkpoint, and the
        resumed run writes them again."""
        super().__init__(path)
        self.start_iter: int | None = start_iter
        self.size = 0
        self.flush()

    def record(self, storage: EventStorage) -> str:
        line = {"iteration": storage.iter, "samples": storage.samples, **latest_scalars(storage)}
        return json.dumps(line) + "\n"

    def append(self, records: list[str]) -> None:
        if self.start_iter is not None:
            self._rewind(self.start_iter)
            self.start_iter = None
        self._check()
        with open(self.path, "r+b") as file:
            # Half a line is left if the disk was full.
            file.truncate(self.size)
            file.seek(self.size)
            file.write("".join(records).encode())
            file.flush()
            os.fsync(file.fileno())
            self.size = file.tell()

    def _check(self) -> None:
        """Check that the file is as this run left it; make a missing one."""
        path = Path(self.path)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            self.size = 0
            logger.warning(f"{self.path} was removed during the run: it starts anew")
        elif path.stat().st_size < self.size:
            self.size = path.read_bytes().rfind(b"\n") + 1
            logger.warning(f"{self.path} was truncated during the run: {self.size} bytes are left")

    def _rewind(self, iteration: int) -> None:
        path = Path(self.path)
        kept = []
        if iteration and path.exists():
            lines = path.read_text(errors="replace").splitlines()
            kept = [line + "\n" for line in lines if _is_up_to(line, iteration)]
        write_text(path, "".join(kept))
        self.size = path.stat().st_size


def _is_up_to(line: str, iteration: int) -> bool:
    try:
        return json.loads(line)["iteration"] <= iteration
    except (ValueError, KeyError, TypeError, RecursionError):  # cut off by a crash
        return False


class RunStartFile(RetryingWriter):
    """A file from the start of the run; it is written again if it is removed."""

    def __init__(self, path: str):
        super().__init__(path)
        self.content = Path(path).read_bytes()

    def record(self, storage: EventStorage) -> None:
        return None

    def append(self, records: list) -> None:
        path = Path(self.path)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.content)
            logger.warning(f"{self.path} was removed during the run: written again")


def is_logging_step(trainer, periods: Sequence[int]) -> bool:
    """Whether metrics are written after this step: at multiples of any period, and at the end."""
    done = trainer.iter + 1
    return done == trainer.max_iter or any(done % period == 0 for period in periods)


class LoggingStepWriter(PeriodicWriter):
    """Writes at each logging step, see :func:`is_logging_step`."""

    def __init__(self, writers: list[EventWriter], *periods: int):
        super().__init__(writers)
        self.periods = periods

    def after_step(self) -> None:
        if is_logging_step(self.trainer, self.periods):
            for writer in self._writers:
                writer.write()
            get_event_storage().clear_images()


def writers(output_dir: str, start_iter: int):
    """The file writers of a run."""
    kept = [os.path.join(output_dir, name) for name in ("config.yaml", "environment.json")]
    return [
        *(RunStartFile(path) for path in kept if os.path.exists(path)),  # not in a dry run
        MetricsFile(os.path.join(output_dir, "metrics.jsonl"), start_iter),
        TensorBoard(os.path.join(output_dir, "tensorboard"), start_iter),
    ]
