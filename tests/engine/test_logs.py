"""A run on a terminal, of files and in a folder whose names are no UTF-8: what it wrote where."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import pty
import re
import struct
import subprocess
import termios
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from libai.utils.events import EventStorage
from libai.utils.logger import setup_logger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from libai_ext.engine import metric_names
from libai_ext.engine.logs import FILES_ONLY, set_up_logs
from libai_ext.engine.progress import Progress
from libai_ext.engine.run_folder import read_metrics
from libai_ext.launch.exit_report import ON_TERMINAL

ROOT = Path(__file__).resolve().parents[2]
ODD = os.fsdecode(b"\xff\x1b[31m\n[11-25 00:00:00] forged: 100 % .png")
SHOWN = r"\xff\x1b[31m\n[11-25 00:00:00] forged: 100 % .png"
RUN = os.fsdecode(b"run\xe9 $x$")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of three digits; one of odd name in test, one that is no image in train."""
    folder = tmp_path_factory.mktemp("odd")
    for split in ("train", "test"):
        for number in range(8):
            path = folder / split / f"class{number % 2}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(path)
        path.rename(path.with_name(ODD))
    (folder / "train/class1" / ODD).write_text("no image")
    return folder


@pytest.fixture(scope="module")
def on_terminal(folder):
    """(output folder, what the terminal got) of six steps, evaluated after the third and sixth."""
    output = folder / RUN
    options = (
        *(f"data.train=[{folder}/train]", f"data.test=[{folder}/test]"),
        *(f"train.output_dir={output}", "train.train_micro_batch_size=8", "model.depth=1"),
        *("train.train_iter=6", "train.warmup_iter=1", "train.log_period=1"),
        *("graph.enabled=False", "task.picture_period=6"),
        *("train.evaluation.enabled=True", "train.evaluation.eval_period=3"),
    )
    config = "projects/MAE/configs/mae_digits.py"
    command = ["bash", "tools/train.sh", "projects/MAE/train_net.py", config, "1", *options]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 40, 200, 0, 0))
    job = subprocess.Popen(command, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    text = b""
    while True:
        try:
            text += os.read(ours, 1 << 16)
        except OSError:  # the last process has closed it
            break
    os.close(ours)
    assert job.wait() == 0, text.decode(errors="replace")
    return output, text.decode(errors="surrogateescape")


def lines_of(output):
    return (output / "log.txt").read_text(encoding="utf-8").splitlines()


def test_the_log_has_the_training_lines_and_the_terminal_a_bar(on_terminal):
    output, shown = on_terminal
    lines = [line for line in lines_of(output) if "training loss" in line]
    assert [re.search(r"\[(\d)/6\]", line)[1] for line in lines] == list("123456")
    last = read_metrics(str(output))[metric_names.TRAINING_LOSS].values[-1]
    assert f"training loss {last:.4f}, lr " in lines[-1] and ", left 0:00:00" in lines[-1]
    assert "6/6 [" in shown and f"training loss {last:.4f}" in shown
    assert "[6/6] training loss" not in shown


def test_an_evaluation_is_told_once_at_its_iteration(on_terminal, monkeypatch):
    output, shown = on_terminal
    series = read_metrics(str(output))
    assert series[metric_names.EVALUATION_LOSS].iterations == [3, 6]
    assert series[metric_names.TRAINING_LOSS].iterations == [1, 2, 3, 4, 5, 6]
    lines = "\n".join(lines_of(output))
    told = re.findall(r"\[(\d)/6\] evaluation on 8 samples: loss (\S+)", lines)
    values = series[metric_names.EVALUATION_LOSS].values
    assert told == [("3", f"{values[0]:.6g}"), ("6", f"{values[1]:.6g}")]
    assert shown.count(told[0][1]) == 1
    monkeypatch.chdir(output)  # TensorBoard cannot read the path
    events = EventAccumulator("tensorboard").Reload()
    assert [point.step for point in events.Scalars(metric_names.EVALUATION_LOSS)] == [3, 6]
    assert "loss" not in events.Tags()["scalars"]


def test_odd_names_are_escaped(on_terminal):
    output, shown = on_terminal
    line = next(line for line in lines_of(output) if "cannot read image" in line)
    assert f"{SHOWN}: unknown image format" in line
    assert "\x1b" not in "".join(lines_of(output)) and SHOWN in shown
    assert not re.search(r"^\[11-25 00:00:00\] forged", shown, re.M)
    assert f"output           {output}".replace("\udce9", r"\xe9") in "\n".join(lines_of(output))


def test_plot_and_report_of_it(on_terminal, launch, monkeypatch):
    output, _ = on_terminal
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import plot

    panels = [axes.get_title() for axes in plot.draw({"": read_metrics(str(output))}).axes]
    assert panels == ["loss", "learning rate", "gradient norm", "images/s", "memory, GiB"]
    out = launch.python("tools/report.py", output)
    assert out == f"{output}/report.html\n".replace("\udce9", r"\xe9")
    page = (output / "report.html").read_text(encoding="utf-8")
    assert r"<h1>run\xe9 $x$</h1>" in page and "arch mae_vit_digits" in page
    steps = re.findall(r"reconstruction, iteration (\d+)</figcaption>", page)
    assert steps == ["6"]
    environment = json.loads((output / "environment.json").read_text())
    assert environment["command"].startswith("projects/")
    commit = launch("git", "describe", "--always", "--dirty", "--abbrev=40", cwd=ROOT).strip()
    assert environment["commit"] == commit


@pytest.fixture
def loggers():
    """Those that programs set up; they are left as they were."""
    loggers = [logging.getLogger(name) for name in ("libai", "libai_ext", "projects")]
    trainer = logging.getLogger("libai.engine.trainer")
    before = [(logger.level, list(logger.handlers)) for logger in loggers], trainer.level
    setup_logger.cache_clear()
    yield loggers
    setup_logger.cache_clear()
    for logger, (level, handlers) in zip(loggers, before[0]):
        logger.setLevel(level)
        logger.handlers[:] = handlers
    trainer.setLevel(before[1])


def test_each_run_of_a_process_has_its_own_log(loggers, tmp_path, capsys):
    """A second one in the same folder also gets what the terminal does not."""
    own = logging.FileHandler(tmp_path / "own.txt")
    loggers[0].addHandler(own)
    for number, folder in enumerate(("a", "b", "b", None)):
        set_up_logs(folder and str(tmp_path / folder))
        for logger in loggers:
            logger.info(f"bar {number}", extra={FILES_ONLY: True})
            logger.info(f"line {number}")
    own.close()
    said = {
        name: re.findall(r"(?:bar|line) \d", (tmp_path / name).read_text())
        for name in ("a/log.txt", "b/log.txt", "own.txt")
    }
    assert said["a/log.txt"] == ["bar 0", "line 0"] * 3
    assert said["b/log.txt"] == ["bar 1", "line 1"] * 3 + ["bar 2", "line 2"] * 3
    assert said["own.txt"] == [
        f"{what} {number}" for number in range(4) for what in ("bar", "line")
    ]
    shown = re.findall(r"(?:bar|line) \d", capsys.readouterr().out)
    assert shown == [f"line {number}" for number in range(4) for _ in loggers]


def test_the_same_lines_without_a_terminal(monkeypatch, caplog):
    """Of made-up numbers, as times of two runs differ."""

    def lines():
        caplog.clear()
        with EventStorage() as storage, caplog.at_level(logging.INFO):
            hook = Progress(2)
            hook.trainer = SimpleNamespace(max_iter=12, start_iter=0, storage=storage)
            hook.before_train()
            for hook.trainer.iter in range(12):
                storage.iter = hook.trainer.iter + 1
                storage.put_scalars(total_loss=1 / 3, lr=1e-3, memory_gib=1, time=2)
                hook.after_step()
            hook.after_train()
        return [record.getMessage() for record in caplog.records]

    plain = lines()
    monkeypatch.setenv(ON_TERMINAL, "1")
    assert lines() == plain
    assert len(plain) == 6
    assert plain[0] == "[ 2/12] training loss 0.3333, lr 1.00e-03, memory 1.00 GiB, left 0:00:20"
