"""TensorBoard event files that survive a full disk and a killed process."""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from itertools import chain
from pathlib import Path

from libai.utils.events import EventStorage
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

from libai_ext.engine.retrying_writer import RetryingWriter, latest_scalars

logger = logging.getLogger(__name__)
_EVENT_FILE = re.compile(r"events\.out\.tfevents\.(\d{10})\.")


class TensorBoard(RetryingWriter):
    """Scalars and pictures as TensorBoard events under ``output_dir/tensorboard``.

    tensorboardX's own writer uses a thread, which a full disk ends: after ten more events its
    queue is full and training hangs. Its queue is also lost with the process.
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
        # LiBai has no public access to the pictures; its own writer reads them here too.
        for name, picture, iteration in storage._vis_data:
            image = summary.image(name, picture)
            events.append(Event(wall_time=time.time(), step=iteration, summary=image))
        return events

    def append(self, records: list[list[Event]]) -> None:
        if self.writer is not None and not os.path.exists(self.file):
            logger.warning(f"{self.file} was removed during the run: a new file continues")
            self._abandon(records)
        try:
            if self.writer is None:
                self.writer = self._open()
            for event in chain.from_iterable(records):
                self.writer.write(event.SerializeToString())
            self.writer.flush()
        except OSError:
            self._abandon(records)
            raise

    def _abandon(self, records: list[list[Event]]) -> None:
        """Continue in another file, since readers stop at half an event. The new file discards the
        steps of the old one that will be given again."""
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
        """TensorBoard reads files by name, so the seconds in the name exceed those of all others,
        even if the clock was set back."""
        found = (_EVENT_FILE.match(name) for name in os.listdir(self.path))
        seconds = max([int(time.time()), *(int(match[1]) + 1 for match in found if match)])
        # Unique: an existing file would be emptied.
        suffix = f"{socket.gethostname()}.{time.time_ns()}"
        return f"events.out.tfevents.{seconds:010d}.{suffix}"

    def close(self) -> None:
        super().close()
        if self.writer is not None:
            self.writer.close()
