"""Gives a run's metrics to a logger without ever making training wait."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from pathlib import Path

from libai.utils.events import EventStorage, EventWriter, get_event_storage

from libai_ext.engine.loggers.logger import Logger, Record, Run
from libai_ext.engine.loggers.run_id import RunId
from libai_ext.engine.retrying_writer import latest_scalars
from libai_ext.engine.run_folder import metrics_of, read_text
from libai_ext.text import printable

_log = logging.getLogger(__name__)
_MOST_RECORDS = 5000
_MOST_PICTURES = 20
_SLOW_SECONDS = 60
_CLOSE_SECONDS = 20


class BackgroundWriter(EventWriter):
    """A thread sends the records, in order. If that fails, the run's log says so at each logging
    step, and the records are kept in memory until it succeeds: at most 5000, with the last 20
    pictures. At its end the run waits for the rest, at most 20 s.

    A resumed run continues the run of the service, whose steps never go back: it is asked for its
    last step. Steps up to that are not sent again, since a resumed run repeats their values. Lines
    of ``metrics.jsonl`` that it lacks are sent first.

    Args:
        name: of the logger's node in ``train.loggers``.
        start_iter: iterations done.
        last_step: the step after which the run is finished.
    """

    def __init__(self, name: str, logger: Logger, run: Run, start_iter: int, last_step: int):
        self.name = name
        self.logger = logger
        self.run = run
        self.start_iter = start_iter
        self.last_step = last_step
        self.id = RunId(run.output_dir, name, logger.id_pattern)
        self.known: int | None = None  # the service's last step, once its run is open
        self.earlier: deque[Record] = deque()
        self.pending: deque[Record] = deque()
        self.dropped = 0
        self.failure: str | None = None
        self.began: float | None = None  # the present attempt
        self.step = start_iter
        self.closing = False
        self.work = True  # to open the run
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._loop, daemon=True)
        self.thread.start()

    def write(self) -> None:
        storage = get_event_storage()
        self.step = storage.iter
        with self.changed:
            self.pending.extend(_records(storage))
            self._limit()
            problem = self._problem()
            self.work = True
            self.changed.notify()
        if problem:
            _log.warning(f"{problem}; {self._kept()} until it can")

    def close(self) -> None:
        with self.changed:
            self.closing = True
            self.changed.notify()
        self.thread.join(_CLOSE_SECONDS)
        if self.thread.is_alive():
            self.failure = f"no answer for {_CLOSE_SECONDS} s"
        if self.failure or self.dropped:
            reason = f" ({self.failure})" if self.failure else ""
            _log.warning(
                f"{self.name} lacks {len(self.pending) + self.dropped} records of this run{reason};"
                " metrics.jsonl has all metrics"
            )

    def _limit(self) -> None:
        while len(self.pending) > _MOST_RECORDS:
            self.pending.popleft()
            self.dropped += 1
        for record in [record for record in self.pending if record.pictures][:-_MOST_PICTURES]:
            record.pictures.clear()

    def _problem(self) -> str | None:
        if self.failure:
            return f"{self.name} cannot be used ({self.failure})"
        waited = time.monotonic() - self.began if self.began is not None else 0
        if waited > _SLOW_SECONDS:
            return f"{self.name} has not answered for {waited:.0f} s"
        return None

    def _kept(self) -> str:
        dropped = f" (the oldest {self.dropped} are dropped)" if self.dropped else ""
        return f"{len(self.pending)} records are kept in memory{dropped}"

    def _loop(self) -> None:
        closing = False
        while not closing:
            with self.changed:
                self.changed.wait_for(lambda: self.work or self.closing)
                closing, self.work = self.closing, False
                self.began = time.monotonic()
            failure = self._attempt(closing)
            with self.changed:
                self.failure, self.began = failure, None

    def _attempt(self, closing: bool) -> str | None:
        """Send all that there is; why that failed, or None."""
        try:
            if self.known is None:
                self._open()
            self._send(self.earlier)
            self._send(self.pending)
            if closing:
                self.logger.close(finished=self.step == self.last_step)
        except BaseException as error:  # whatever a library raises, also SystemExit
            lines = str(error).strip().splitlines() or [type(error).__name__]
            return printable(lines[0][:200])
        return None

    def _open(self) -> None:
        stored = self.id.read()
        id, known = self.logger.open(self.run, stored)
        if id != stored:
            self.id.write(id)
            _log.info(f"{self.name}: new run {id}")
        else:
            _log.info(f"{self.name}: continues the run {id} after step {known}")
        self.earlier.extend(_lines(self.run.output_dir, known, self.start_iter))
        self.known = known

    def _send(self, records: deque[Record]) -> None:
        while True:
            with self.changed:
                if not records:
                    return
                record = records.popleft()
            try:
                if record.step > (self.known or 0):
                    self.logger.log(record)
            except BaseException:
                with self.changed:
                    records.appendleft(record)
                raise


def _records(storage: EventStorage) -> list[Record]:
    """Pictures of earlier steps, then the last step."""
    now = time.time()
    metrics = {"samples": storage.samples, **latest_scalars(storage)}
    records = {storage.iter: Record(storage.iter, now, metrics, {})}
    # LiBai has no public access to the pictures.
    for name, picture, step in storage._vis_data:
        records.setdefault(step, Record(step, now, {}, {})).pictures[name] = picture
    return [records[step] for step in sorted(records)]


def _lines(output_dir: str, after: int, until: int) -> list[Record]:
    """The lines of ``metrics.jsonl`` with ``after < iteration <= until``."""
    path = Path(output_dir, "metrics.jsonl")
    if after >= until or not path.is_file():
        return []
    rows = [row for row in map(metrics_of, read_text(path).splitlines()) if row is not None]
    records = [Record(int(row.pop("iteration")), time.time(), row, {}) for row in rows]
    return [record for record in records if after < record.step <= until]
