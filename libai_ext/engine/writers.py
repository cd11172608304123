"""Where a run's numbers go: terminal, metrics.jsonl, TensorBoard."""

from __future__ import annotations

import datetime
import json
import logging
import os
import re
import socket
import sys
import time
from itertools import chain
from pathlib import Path
from typing import Sequence

from libai.engine.hooks import PeriodicWriter
from libai.engine.trainer import HookBase
from libai.utils.events import EventStorage, EventWriter, get_event_storage
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter
from tqdm import tqdm

from libai_ext.engine import metric_names
from libai_ext.engine.logs import FILES_ONLY
from libai_ext.files.atomic import write_text
from libai_ext.launch.exit_report import ON_TERMINAL

logger = logging.getLogger(__name__)
_INTERNAL = ("eta_seconds",)
_EVENT_FILE = re.compile(r"events\.out\.tfevents\.(\d{10})\.")


def latest_scalars(storage: EventStorage) -> dict[str, float]:
    """Scalars of the iteration just done, by name: see :mod:`libai_ext.engine.metric_names`."""
    return {
        name: value
        for name, (value, iteration) in storage.latest().items()
        if iteration == storage.iter and name not in _INTERNAL
    }


class _File(EventWriter):
    """A file that training can do without for a while: what the disk refuses is kept, warned of
    and offered again at each logging step."""

    def __init__(self, path: str):
        self.path = path
        self.pending: list = []

    def write(self) -> None:
        self.pending.append(self.record(get_event_storage()))
        self.flush()

    def flush(self) -> None:
        try:
            self.append(self.pending)
        except OSError as error:
            logger.warning(
                f"{self.path} cannot be written ({error.strerror}); {len(self.pending)} logging "
                "steps are kept in memory until it can"
            )
        else:
            self.pending = []

    def close(self) -> None:
        if self.pending:
            self.flush()

    def record(self, storage: EventStorage):
        """What this file says of the iteration just done."""
        raise NotImplementedError

    def append(self, records: list) -> None:
        """Put all records on disk, or raise OSError and let them be given again."""
        raise NotImplementedError


class MetricsFile(_File):
    """One JSON object per logging step. ``iteration`` counts optimizer steps done."""

    def __init__(self, path: str, start_iter: int):
        """Lines after ``start_iter``, written by a run that got further than its last
        checkpoint, are dropped: a resumed run writes them again."""
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
        self._find()
        with open(self.path, "r+b") as file:
            # Half a line, where the disk was full in the middle.
            file.truncate(self.size)
            file.seek(self.size)
            file.write("".join(records).encode())
            file.flush()
            os.fsync(file.fileno())
            self.size = file.tell()

    def _find(self) -> None:
        """The file as this run left it, or what others left of it."""
        path = Path(self.path)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            self.size = 0
            logger.warning(f"{self.path} was removed while the run is on: it begins anew")
        elif path.stat().st_size < self.size:
            self.size = path.read_bytes().rfind(b"\n") + 1
            logger.warning(f"{self.path} was cut while the run is on: {self.size} bytes are left")

    def _rewind(self, iteration: int) -> None:
        path = Path(self.path)
        kept = []
        if iteration and path.exists():
            lines = path.read_text(errors="replace").splitlines()
            kept = [line + "\n" for line in lines if _upto(line, iteration)]
        write_text(path, "".join(kept))
        self.size = path.stat().st_size


def _upto(line: str, iteration: int) -> bool:
    try:
        return json.loads(line)["iteration"] <= iteration
    except (ValueError, KeyError, TypeError, RecursionError):  # cut off by a crash
        return False


class TensorBoard(_File):
    """Scalars and pictures as TensorBoard events under ``output_dir/tensorboard``.

    tensorboardX's own writer hands events to a thread, which a full disk ends: the next ten
    events fill its queue and training hangs. Also, what waits in it is lost with the process.
    """

    def __init__(self, folder: str, start_iter: int):
        super().__init__(folder)
        self.first_step = start_iter + 1
        self.file = ""
        self.writer: RecordWriter | None = None

    def record(self, storage: EventStorage) -> list[Event]:
        scalars = [summary.scalar(name, value) for name, value in latest_scalars(storage).items()]
        values = [part.value[0] for part in scalars]
        events = [Event(wall_time=time.time(), step=storage.iter, summary=Summary(value=values))]
        # LiBai gives no other access to what put_image() took; its own writer reads it here too.
        for name, picture, iteration in storage._vis_data:
            image = summary.image(name, picture)
            events.append(Event(wall_time=time.time(), step=iteration, summary=image))
        storage.clear_images()
        return events

    def append(self, records: list[list[Event]]) -> None:
        if self.writer is not None and not os.path.exists(self.file):
            logger.warning(f"{self.file} was removed while the run is on: another file begins")
            self._give_up(records)
        try:
            if self.writer is None:
                self.writer = self._open()
            for event in chain.from_iterable(records):
                self.writer.write(event.SerializeToString())
            self.writer.flush()
        except OSError:
            self._give_up(records)
            raise

    def _give_up(self, records: list[list[Event]]) -> None:
        """Readers stop at half an event: go on in another file, which takes back what this one
        may have of the steps that are given again."""
        self.writer = None
        self.first_step = records[0][0].step if records else self.first_step

    def _open(self) -> RecordWriter:
        os.makedirs(self.path, exist_ok=True)
        self.file = os.path.join(self.path, self._new_name())
        version = Event(wall_time=time.time(), file_version="brain.Event:2")
        start = SessionLog(status=SessionLog.START)
        started = Event(wall_time=time.time(), step=self.first_step, session_log=start)
        try:
            writer = RecordWriter(self.file)
            for event in (version, started):
                writer.write(event.SerializeToString())
            writer.flush()
        except OSError:
            Path(self.file).unlink(missing_ok=True)
            raise
        return writer

    def _new_name(self) -> str:
        """TensorBoard reads files in the order of their names: the seconds in it go on from those
        there, also where the clock was set back."""
        found = (_EVENT_FILE.match(name) for name in os.listdir(self.path))
        seconds = max([int(time.time()), *(int(match[1]) + 1 for match in found if match)])
        # A file of the same name would be emptied.
        suffix = f"{socket.gethostname()}.{time.time_ns()}"
        return f"events.out.tfevents.{seconds:010d}.{suffix}"

    def close(self) -> None:
        super().close()
        if self.writer is not None:
            self.writer.close()


class KeptFile(_File):
    """A file of the run's beginning, written again where it was removed."""

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
            logger.warning(f"{self.path} was removed while the run is on: written again")


def place_of(trainer) -> str:
    """How far a training run is, as ``[ 20/100]``."""
    last = trainer.max_iter
    return f"[{min(trainer.iter + 1, last):{len(str(last))}d}/{last}]"


class Progress(HookBase):
    """A line per ``period`` iterations of what :class:`libai_ext.engine.gauges.Gauges` measured.
    On a terminal a live bar shows it, and the line is written to ``log.txt`` alone."""

    def __init__(self, period: int):
        self.period = period
        self.bar: tqdm | None = None

    def before_train(self) -> None:
        if sys.stderr.isatty() or ON_TERMINAL in os.environ:
            self.bar = tqdm(
                total=self.trainer.max_iter,
                initial=self.trainer.start_iter,
                unit="it",
                dynamic_ncols=True,
            )

    def after_step(self) -> None:
        if is_line(self.trainer, [self.period]):
            self._write(self._text())
        if self.bar is not None:
            self.bar.update()

    def _write(self, text: str) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
        live = self.bar is not None
        logger.info(f"{place_of(self.trainer)} {text}{self._eta()}", extra={FILES_ONLY: live})

    def after_train(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def _text(self) -> str:
        latest = latest_scalars(self.trainer.storage)
        if metric_names.TRAINING_LOSS not in latest:
            return "step left out"
        text = f"training loss {latest[metric_names.TRAINING_LOSS]:.4f}"
        text += f", lr {latest[metric_names.LEARNING_RATE]:.2e}"
        if metric_names.LOSS_SCALE in latest:
            text += f", loss scale {latest[metric_names.LOSS_SCALE]:g}"
            text += f", {latest[metric_names.SKIPPED_STEPS]:.0f} skipped"
        if metric_names.SPEED in latest:  # not in the first iterations
            text += f", {latest[metric_names.SPEED]:.0f} images/s"
            text += f", data wait {100 * latest[metric_names.DATA_WAIT]:.0f} %"
        return f"{text}, memory {latest[metric_names.MEMORY]:.2f} GiB"

    def _eta(self) -> str:
        seconds = latest_scalars(self.trainer.storage).get(metric_names.STEP_SECONDS)
        if seconds is None:
            return ""
        left = seconds * (self.trainer.max_iter - self.trainer.iter - 1)
        return f", left {datetime.timedelta(seconds=int(left))}"


def is_line(trainer, periods: Sequence[int]) -> bool:
    """Whether numbers are written after this step: every so many iterations, counted by any of
    the periods, and after the last one."""
    done = trainer.iter + 1
    return done == trainer.max_iter or any(done % period == 0 for period in periods)


class Writing(PeriodicWriter):
    """Writes at each logging step, see :func:`is_line`."""

    def __init__(self, writers: list[EventWriter], *periods: int):
        super().__init__(writers)
        self.periods = periods

    def after_step(self) -> None:
        if is_line(self.trainer, self.periods):
            for writer in self._writers:
                writer.write()


def writers(output_dir: str, start_iter: int):
    """The file writers of a run."""
    kept = [os.path.join(output_dir, name) for name in ("config.yaml", "environment.json")]
    return [
        *(KeptFile(path) for path in kept if os.path.exists(path)),  # not in a dry run
        MetricsFile(os.path.join(output_dir, "metrics.jsonl"), start_iter),
        TensorBoard(os.path.join(output_dir, "tensorboard"), start_iter),
    ]
