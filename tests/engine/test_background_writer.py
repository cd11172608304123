"""A logger gets each step once and in order; whatever it does, training goes on."""

from __future__ import annotations

import json
import logging
import threading
import time

import numpy as np
import pytest
from libai.utils.events import EventStorage

from libai_ext.engine.loggers import background
from libai_ext.engine.loggers.background import BackgroundWriter
from libai_ext.engine.loggers.logger import Logger, Run
from libai_ext.engine.writers import MetricsFile

LAST = 9


class Service(Logger):
    """Keeps what it gets; raises the errors in ``errors``, one at each call."""

    def __init__(self, *errors, known=0):
        super().__init__(enabled=True)
        self.errors = list(errors)
        self.known = known
        self.got = []
        self.opened_as: list[str | None] = []
        self.finished: bool | None = None

    def fail(self):
        if self.errors:
            raise self.errors.pop(0)

    def open(self, run, id):
        self.opened_as.append(id)
        self.fail()
        return id or "the-id", self.known

    def log(self, record):
        self.fail()
        self.got.append((record.step, record.metrics.get("x"), sorted(record.pictures)))

    def close(self, finished):
        self.finished = finished


def writer_of(service, folder, start=0):
    return BackgroundWriter("mine", service, Run(str(folder), {}, {}), start, LAST)


def settle(writer, seconds=20.0):
    """Wait until the thread has nothing to do."""
    end = time.monotonic() + seconds
    while (writer.work or writer.began is not None) and time.monotonic() < end:
        time.sleep(0.001)


def log(writer, steps, pictures=(), files=(), seconds=20.0):
    """One scalar "x" a step, its value the step, and a picture at each step of ``pictures``."""
    settle(writer, seconds)
    with EventStorage() as storage:
        for step in range(min(steps), max(steps) + 1):
            storage.iter = storage.samples = step
            if step in pictures:
                storage.put_image("shown", np.zeros((1, 2, 2), np.uint8))
            if step in steps:
                storage.put_scalar("x", step)
                for one in (*files, writer):
                    one.write()
                storage.clear_images()
                settle(writer, seconds)


def steps_of(service):
    return [step for step, *_ in service.got]


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(background, "_CLOSE_SECONDS", 0.5)
    monkeypatch.setattr(background, "_SLOW_SECONDS", 0.05)


def test_steps_and_pictures(tmp_path):
    service = Service()
    writer = writer_of(service, tmp_path)
    log(writer, [2, 4, LAST], pictures=[3, 4])
    writer.close()
    shown = ["shown"]
    assert service.got == [(2, 2.0, []), (3, None, shown), (4, 4.0, shown), (LAST, LAST, [])]
    assert service.finished is True and service.opened_as == [None]
    assert json.loads((tmp_path / "loggers/mine.json").read_text()) == {"id": "the-id"}


def test_failures_are_told_and_made_up_for(tmp_path, caplog):
    service = Service(
        SystemExit("a\nb"), OSError("no\x1b route"), ValueError(), OSError(28, "full")
    )
    writer = writer_of(service, tmp_path)
    with caplog.at_level(logging.WARNING):
        log(writer, range(1, 8))
        writer.close()
    assert steps_of(service) == [*range(1, 8)]
    assert service.finished is False
    for text in ("mine cannot be used (a);", "(no\\x1b route)", "(ValueError)", "full"):
        assert text in caplog.text, text
    assert "lacks" not in caplog.text


def test_a_service_that_is_gone(tmp_path, caplog):
    service = Service(*[ConnectionError("gone")] * 99)
    writer = writer_of(service, tmp_path)
    log(writer, range(1, 6))
    writer.close()
    assert service.got == []
    for count in range(1, 6):
        assert f"cannot be used (gone); {count} records are kept in memory until" in caplog.text
    assert "mine lacks 5 records of this run (gone); metrics.jsonl has all" in caplog.text


def test_a_service_that_never_answers(tmp_path, caplog, soon):
    hung = threading.Event()
    service = Service()
    service.log = lambda record: hung.wait()
    writer = writer_of(service, tmp_path)
    start = time.monotonic()
    log(writer, range(1, 8), seconds=0.1)
    writer.close()
    hung.set()
    assert time.monotonic() - start < 10
    assert "mine has not answered for" in caplog.text
    assert "(no answer for 0.5 s)" in caplog.text


def test_memory_is_bounded(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(background, "_MOST_RECORDS", 3)
    monkeypatch.setattr(background, "_MOST_PICTURES", 1)
    service = Service(*[ConnectionError("gone")] * 7)
    writer = writer_of(service, tmp_path)
    log(writer, range(1, 7), pictures=range(1, 7))
    assert [bool(record.pictures) for record in writer.pending] == [False, False, True]
    service.errors.clear()
    writer.close()
    assert steps_of(service) == [4, 5, 6]
    assert "the oldest 3 are dropped" in caplog.text and "mine lacks 3 records" in caplog.text


@pytest.mark.parametrize(
    "known, expected", [(6, [7, 8]), (3, [4, 5, 6, 7, 8]), (0, [*range(1, 9)]), (99, [])]
)
def test_a_resumed_run_sends_what_is_missing(tmp_path, known, expected, caplog):
    """The run got to step 6, its checkpoint is of step 4, the service has ``known`` steps."""
    path = str(tmp_path / "metrics.jsonl")
    first = MetricsFile(path, 0)
    log(writer_of(Service(), tmp_path / "other"), range(1, 7), files=[first])
    files = [MetricsFile(path, 4)]
    (tmp_path / "loggers").mkdir()
    (tmp_path / "loggers/mine.json").write_text('{"id": "earlier_1"}')
    service = Service(OSError("once"), known=known)
    writer = writer_of(service, tmp_path, start=4)
    with caplog.at_level(logging.INFO):
        log(writer, range(5, 9), files=files)
        writer.close()
    assert service.got == [(step, step, []) for step in expected]
    assert service.opened_as == ["earlier_1", "earlier_1"]
    assert f"mine: continues the run earlier_1 after step {known}" in caplog.text
    assert caplog.text.count("continues") == 1


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"id": 3}', '{"id": "../../x"}', '{"id": "a\\n"}', '{"id": ""}', "[" * 4000]
    + ['{"id": "' + "a" * 65 + '"}', '{"id": "' + "a" * 5000 + '"}', None],
)
def test_an_id_is_not_trusted(tmp_path, content, caplog):
    path = tmp_path / "loggers/mine.json"
    path.mkdir(parents=True) if content is None else path.parent.mkdir()
    if content is not None:
        path.write_text(content)
    service = Service()
    writer = writer_of(service, tmp_path)
    writer.close()
    assert service.opened_as[0] is None
    assert "mine.json has no valid id: mine gets a new run" in caplog.text
