"""metrics.jsonl and TensorBoard: nothing lost, nothing twice, and no run ended by a full disk."""

from __future__ import annotations

import json
import logging
import shutil
import time
from pathlib import Path

import pytest
from libai.utils.events import EventStorage
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from libai_ext.engine.tensorboard import TensorBoard
from libai_ext.engine.writers import MetricsFile, writers


def log(writer, steps, close=True):
    """One scalar "x" per step, its value the step."""
    with EventStorage() as storage:
        for step in steps:
            storage.iter = storage.samples = step
            storage.put_scalar("x", step)
            writer.write()
    if close:
        writer.close()


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def points(folder):
    return [
        (event.step, event.value) for event in EventAccumulator(str(folder)).Reload().Scalars("x")
    ]


def test_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log(MetricsFile(str(path), 0), [2, 4])
    assert lines(path) == [
        {"iteration": 2, "samples": 2, "x": 2.0},
        {"iteration": 4, "samples": 4, "x": 4.0},
    ]


def test_a_value_is_logged_with_its_own_iteration_only(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with EventStorage() as storage:
        writer = MetricsFile(str(path), 0)
        for step in (1, 2):
            storage.iter = storage.samples = step
            storage.put_scalar("loss", step)
            if step == 1:
                storage.put_scalar("accuracy", 0.5)
            writer.write()
    assert ["accuracy" in line for line in lines(path)] == [True, False]


@pytest.mark.parametrize("tail", ["", "[" * 5000, '{"iteration": 5, "sam', "\x00\x00\n7\n"])
def test_resumed_lines(tmp_path, tail):
    """What came after the checkpoint goes, a line that a crash cut off as well."""
    path = tmp_path / "metrics.jsonl"
    log(MetricsFile(str(path), 0), [1, 2, 3, 4])
    with path.open("a") as file:
        file.write(tail)
    log(MetricsFile(str(path), 2), [3, 4])
    assert [line["iteration"] for line in lines(path)] == [1, 2, 3, 4]
    log(MetricsFile(str(path), 0), [1])
    assert [line["iteration"] for line in lines(path)] == [1]


def test_resumed_points(tmp_path):
    log(TensorBoard(str(tmp_path), 0), [1, 2, 3, 4])
    log(TensorBoard(str(tmp_path), 2), [3, 4, 5])
    assert points(tmp_path) == [(step, step) for step in (1, 2, 3, 4, 5)]


def test_points_are_on_disk_at_once(tmp_path):
    """A run that is killed closes nothing."""
    writer = TensorBoard(str(tmp_path), 0)
    log(writer, [1, 2], close=False)
    assert points(tmp_path) == [(1, 1), (2, 2)]


@pytest.mark.parametrize(
    ("make", "read"),
    [
        (lambda disk: MetricsFile(str(disk / "m"), 0), lambda disk: lines(disk / "m")),
        (lambda disk: TensorBoard(str(disk / "t"), 0), lambda disk: points(disk / "t")),
    ],
    ids=["metrics", "tensorboard"],
)
def test_full_disk(small_disk, make, read, caplog):
    """More steps while it is full than tensorboardX's queue holds."""
    writer = make(small_disk.folder)
    log(writer, [1, 2], close=False)
    small_disk.fill()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        log(writer, range(3, 303), close=False)
    assert "No space left on device" in caplog.records[-1].message
    assert len(list(small_disk.folder.rglob("*tfevents*"))) <= 2
    small_disk.free()
    log(writer, [303])
    found = read(small_disk.folder)
    steps = [line["iteration"] if isinstance(line, dict) else line[0] for line in found]
    assert steps == [*range(1, 304)]


def test_a_file_in_the_way(tmp_path, caplog):
    """Training starts, and goes on when the obstacle is gone."""
    (tmp_path / "t").write_text("")
    (tmp_path / "m").mkdir()
    made = [TensorBoard(str(tmp_path / "t"), 0), MetricsFile(str(tmp_path / "m"), 0)]
    for writer in made:
        log(writer, [1], close=False)
    assert "cannot be written" in caplog.text
    (tmp_path / "t").unlink()
    (tmp_path / "m").rmdir()
    for writer in made:
        log(writer, [2])
    assert points(tmp_path / "t") == [(1, 1), (2, 2)]
    assert [line["iteration"] for line in lines(tmp_path / "m")] == [1, 2]


MAKE = {
    "m": lambda path: MetricsFile(str(path), 0),
    "t": lambda path: TensorBoard(str(path), 0),
}


@pytest.mark.parametrize("removed", ["run", "run/m", "run/t", "event file"])
def test_removed_in_mid_run_it_comes_back_and_says_so(tmp_path, removed, caplog):
    run = tmp_path / "run"
    run.mkdir()
    made = {name: make(run / name) for name, make in MAKE.items()}
    for writer in made.values():
        log(writer, [1, 2], close=False)
    place = next((run / "t").iterdir()) if removed == "event file" else tmp_path / removed
    (place.unlink if place.is_file() else lambda: shutil.rmtree(place))()
    with caplog.at_level(logging.WARNING):
        for writer in made.values():
            log(writer, [3, 4])
    lost = {"run": "mt", "run/m": "m"}.get(removed, "t")
    found = {"m": [line["iteration"] for line in lines(run / "m")]}
    found["t"] = [step for step, _ in points(run / "t")]
    assert found == {name: [3, 4] if name in lost else [1, 2, 3, 4] for name in "mt"}
    assert caplog.text.count("was removed during the run") == len(lost)


def test_metrics_that_were_cut(tmp_path, caplog):
    path = tmp_path / "m"
    writer = MetricsFile(str(path), 0)
    log(writer, [1, 2, 3], close=False)
    path.write_bytes(path.read_bytes()[:-10])
    log(writer, [4])
    assert [line["iteration"] for line in lines(path)] == [1, 2, 4]
    assert "was truncated during the run" in caplog.text


def test_the_config_comes_back(tmp_path, caplog):
    for name in ("config.yaml", "environment.json"):
        (tmp_path / name).write_text(name)
    made = writers(str(tmp_path), 0)
    for name in ("config.yaml", "environment.json"):
        (tmp_path / name).unlink()
    for writer in made:
        log(writer, [1])
    assert (tmp_path / "config.yaml").read_text() == "config.yaml"
    assert (tmp_path / "environment.json").read_text() == "environment.json"
    assert caplog.text.count("written again") == 2


def test_a_clock_that_was_set_back_hides_nothing(tmp_path, monkeypatch):
    log(TensorBoard(str(tmp_path), 0), [1, 2, 3])
    now = time.time()
    for seconds in (3600, 1e9, now - 5):
        monkeypatch.setattr(time, "time", lambda: now - seconds)  # noqa: B023
        log(TensorBoard(str(tmp_path), 2), [3, 4])
        monkeypatch.undo()
        assert points(tmp_path) == [(step, step) for step in (1, 2, 3, 4)]
    log(TensorBoard(str(tmp_path), 4), [5])
    assert points(tmp_path)[-1] == (5, 5)
