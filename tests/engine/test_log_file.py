from __future__ import annotations

import logging
import shutil

import pytest

from libai_ext.engine.log_file import LogFile


@pytest.fixture
def log(tmp_path):
    """The logger of the package, on a file."""
    handler = LogFile(str(tmp_path / "run/log.txt"))
    logger = logging.getLogger("libai_ext")
    logger.addHandler(handler)
    yield logger
    logger.removeHandler(handler)


def messages(tmp_path):
    lines = (tmp_path / "run/log.txt").read_text(encoding="utf-8").splitlines()
    return [line.split(": ", 1)[1] for line in lines]


@pytest.mark.parametrize("what", ["run", "run/log.txt"])
def test_removed_it_comes_back_and_says_so(log, tmp_path, what, caplog):
    log.warning("one")
    assert messages(tmp_path) == ["one"]
    (shutil.rmtree if what == "run" else lambda path: path.unlink())(tmp_path / what)
    log.warning("two")
    log.warning("three")
    said = f"{tmp_path}/run/log.txt was removed during the run: it starts anew"
    assert messages(tmp_path) == [said, "two", "three"]
    assert caplog.messages == ["one", said, "two", "three"]


def test_a_moved_one_stays_whole(log, tmp_path):
    log.warning("one")
    (tmp_path / "run/log.txt").rename(tmp_path / "run/kept")
    log.warning("two")
    assert (tmp_path / "run/kept").read_text().endswith("one\n")
    assert messages(tmp_path)[-1] == "two"


def test_names_that_are_no_text(log, tmp_path):
    log.warning("a\udcff")
    assert messages(tmp_path) == ["a\\udcff"]


def test_what_cannot_be_written_ends_nothing(log, tmp_path, capsys):
    (tmp_path / "run").write_text("a file")
    for _ in range(3):
        log.warning("lost")
    said = capsys.readouterr().err
    assert said.count("log.txt cannot be written: ") == 1 and "Traceback" not in said
    (tmp_path / "run").unlink()
    log.warning("found")
    assert messages(tmp_path)[-1] == "found"


def test_a_full_disk_ends_nothing(small_disk, capsys):
    handler = LogFile(str(small_disk.folder / "log.txt"))
    record = logging.makeLogRecord({"msg": "a line", "levelname": "INFO"})
    handler.emit(record)
    small_disk.fill()
    for _ in range(300):
        handler.emit(record)
    said = capsys.readouterr().err
    assert "No space left" in said and said.count("cannot be written") == 1
    small_disk.free()
    handler.emit(record)
    assert (small_disk.folder / "log.txt").read_text().endswith(": a line\n")
    handler.close()
