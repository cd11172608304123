"""Figures and the page of a run, from files as a run writes them."""

from __future__ import annotations

import base64
import collections
import datetime
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboardX import SummaryWriter

from libai_ext.engine import environment
from libai_ext.engine.run_folder import Series, read_metrics
from libai_ext.errors import ConfigError, DataError

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def now():
    return datetime.datetime.now().astimezone()


def write_run(folder, scale=1.0, accuracy=False):
    """Four logging steps; evaluated at the second and the last."""
    folder.mkdir()
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, 5):
            row = {"iteration": 50 * step, "samples": 800 * step, "total_loss": scale / step}
            row.update(lr=1e-3 * step, images_per_second=100.0 + step, data_wait=0.01 * step)
            if accuracy and step % 2 == 0:
                row.update(top1=50.0 - 5 * step, top5=20.0 * step, eval_loss=2.0 / step)
            file.write(json.dumps(row) + "\n")
        file.write('{"iteration": 250, "total')  # killed
    return folder


@pytest.fixture
def run(tmp_path):
    folder = write_run(tmp_path / "first", accuracy=True)
    (folder / "config.yaml").write_text("model:\n  name: <b>&amp;\n")
    Image.new("RGB", (9, 9)).save(folder / "confusion.png")
    environment.write(str(folder), {"model": "arch tiny, depth 2", "parameters": "1,234"})
    started = datetime.datetime(2026, 1, 2, 3, 4, 5).astimezone()
    content = json.loads((folder / "environment.json").read_text())
    assert abs(datetime.datetime.fromisoformat(content["started"]) - now()).total_seconds() < 60
    content["started"] = started.isoformat()
    (folder / "environment.json").write_text(json.dumps(content))
    writer = SummaryWriter(str(folder / "tensorboard"))
    writer.add_scalar("total_loss", 1, 1, walltime=started.timestamp() + 3723)
    for step in range(0, 2000, 200):
        writer.add_image("reconstruction", np.full((3, 8, 40), step // 10, np.uint8), step)
    writer.close()
    return folder


@pytest.fixture
def plot(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import plot

    return plot


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import report

    return report


def test_metrics_are_read_by_name(tmp_path, run):
    series = read_metrics(str(run))
    assert series["total_loss"] == ([50, 100, 150, 200], [1, 1 / 2, 1 / 3, 1 / 4])
    assert series["top1"] == ([100, 200], [40, 30])
    with pytest.raises(DataError, match="nowhere is not the output directory of a run"):
        read_metrics(str(tmp_path / "nowhere"))
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(DataError, match="holds no metrics yet"):
        read_metrics(str(run))
    (run / "metrics.jsonl").write_text('[]\n{"iteration": 1}\n')
    with pytest.raises(DataError, match="metrics.jsonl, line 1: not a line of metrics"):
        read_metrics(str(run))
    # As version 0.1 wrote it.
    (run / "metrics.jsonl").write_text('{"iteration": 1, "total_loss": 2, "loss": 3}\n')
    assert read_metrics(str(run))["eval_loss"] == ([1], [3])


@pytest.mark.parametrize(
    "line",
    ["{", "7", '{"x": 1}', '{"iteration": 1, "x": "y"}', "[" * 10**5],
    ids=["cut", "number", "no iteration", "text", "deep"],
)
def test_what_is_no_line_of_metrics(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{line}\n{{"iteration": 1, "x": 1}}\n')
    with pytest.raises(DataError, match="metrics.jsonl, line 1: not a line of metrics"):
        read_metrics(str(tmp_path))


def test_curves_of_two_runs(tmp_path, run, plot):
    second = write_run(tmp_path / "second", scale=3)
    names = plot.labels([str(run), str(second)])
    assert names == {"first": str(run), "second": str(second)}
    figure = plot.draw({name: read_metrics(path) for name, path in names.items()})
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert list(panels) == ["loss", "learning rate", "accuracy, %", "images/s"]
    lines = {line.get_label(): line.get_xydata().tolist() for line in panels["loss"].lines}
    assert list(lines) == ["first, training", "first, evaluation", "second, training"]
    assert lines["second, training"] == [[50, 3], [100, 1.5], [150, 1], [200, 0.75]]
    assert lines["first, evaluation"] == [[100, 1], [200, 0.5]]
    colours = [line.get_color() for line in panels["loss"].lines]
    assert colours == ["C0", "C0", "C1"]
    assert [line.get_label() for line in panels["images/s"].lines] == ["first", "second"]
    assert plot.labels(["a/run", "b/run"]) == {"a/run": "a/run", "b/run": "b/run"}


def test_curves_of_some_metrics(tmp_path, run, plot):
    second = write_run(tmp_path / "second")
    with (second / "metrics.jsonl").open("w") as file:
        file.write('{"iteration": 9, "knn/top1": 7.5, "knn/own": 3, "total_loss": 1}\n')
    runs = {"a": read_metrics(str(run)), "b": read_metrics(str(second))}
    (axes,) = plot.draw(plot.only(["top1", "knn/top1"], runs)).axes
    assert axes.get_title() == "accuracy, %"
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines == {"a, top 1": [[100, 40], [200, 30]], "b, knn/top1": [[9, 7.5]]}
    for name in ("top2", "knn/own", "data_wait"):
        with pytest.raises(ConfigError, match=f"no run has a metric {name} .* knn/top1, lr, top1,"):
            plot.only(["top1", name], runs)


@pytest.mark.filterwarnings("error")
def test_any_name_of_a_run_is_text(tmp_path, plot):
    """Neither a formula nor hidden, and no escape of a terminal."""
    runs = [write_run(tmp_path / name) for name in ("_x", "$a_{", "\x1b[2J", "\udce9")]
    names = plot.labels(list(map(str, runs)))
    figure = plot.draw({name: read_metrics(path) for name, path in names.items()})
    figure.savefig(tmp_path / "runs.svg")
    shown = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert shown == ["_x", "$a_{", r"\x1b[2J", r"\xe9"]


def test_plot_writes_a_picture(launch, tmp_path, run):
    target = tmp_path / "figures/runs.png"
    assert launch.python(TOOLS / "plot.py", run, "--output", target) == f"{target}\n"
    assert np.asarray(Image.open(target)).std() > 10
    out = launch.python(TOOLS / "plot.py", run, run, status=2)
    assert out == "error: the same run is given twice\n"
    out = launch.python(TOOLS / "plot.py", tmp_path, status=2)
    said = "is not the output directory of a run: it has no metrics.jsonl"
    assert out == f"error: {tmp_path} {said}\n"


class Page(HTMLParser):
    """Checks that elements close in order, and keeps what would be fetched, and the text."""

    VOID = {"meta", "link", "img", "br"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.text = [], [], [], ""
        self.rows = dict(re.findall("<tr><th>(.*?)</th><td>(.*?)</td></tr>", text))
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for key, v in attrs if key in ("src", "href", "xlink:href", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_report_is_one_file(launch, run):
    out = launch.python(TOOLS / "report.py", run)
    assert out == f"{run}/report.html\n"
    page = Page((run / "report.html").read_text())
    assert "script" not in page.tags and page.tags.count("svg") == 1
    # Nothing is fetched: what is linked lies in the page. (SVG names its own parts by "#".)
    assert all(link.startswith(("data:", "#")) for link in page.links)
    for heading in ("Summary", "Curves", "Pictures", "Config", "Environment"):
        assert heading in page.text
    assert page.rows["best result"] == "top 1, % 40 at iteration 100"
    assert page.rows["top 1, %"] == "30 at the end (best: 40 at iteration 100)"
    assert page.rows["evaluation loss"] == "0.5 at the end (best: 0.5 at iteration 200)"
    assert page.rows["training loss"] == "0.25 at the end (best: 0.25 at iteration 200)"
    assert (page.rows["iterations"], page.rows["samples"]) == ("200", "3,200")
    assert page.rows["speed"] == "102 images/s (median)"
    assert page.rows["waiting for data"] == "2.5 % (median)"
    assert page.rows["date"] == "2026-01-02 03:04"
    assert page.rows["duration"] == "1:02:03 (h:mm:ss)"
    assert page.rows["model"] == "arch tiny, depth 2"
    assert page.rows["parameters"] == "1,234"
    assert "name: <b>&amp;" in page.text and "b" not in page.tags
    assert json.loads((run / "environment.json").read_text())["processor"] in page.text

    *pictures, confusion = [link for link in page.links if link.startswith("data:image/png")]
    assert base64.b64decode(confusion.split(",", 1)[1]) == (run / "confusion.png").read_bytes()
    steps = []
    for picture in pictures:
        data = base64.b64decode(picture.split(",", 1)[1])
        (run / "one.png").write_bytes(data)
        pixels = np.asarray(Image.open(run / "one.png"))
        assert pixels.shape == (8, 40, 3) and len(np.unique(pixels)) == 1
        steps.append(10 * int(pixels[0, 0, 0]))
    assert steps == [0, 400, 800, 1000, 1400, 1800]  # six of ten, the first and last among them


def test_the_best_of_an_evaluator_is_claimed_where_it_is_known(report):
    """A user's own may be better at its lowest or at its highest value."""
    metrics = {
        name: Series([10, 20, 30], [2.0, 1.0, 3.0])
        for name in ("total_loss", "knn/top1", "other/loss", "mine/error")
    }
    rows = report.summary(metrics)
    assert rows["knn/top1"] == "3 at the end (best: 3 at iteration 30)"
    assert rows["other/loss"] == "3 at the end (best: 1 at iteration 20)"
    extremes = "lowest: 1 at iteration 20, highest: 3 at iteration 30"
    assert rows["mine/error"] == f"3 at the end ({extremes})"
    assert "best result" not in report.summary({"mine/error": metrics["mine/error"]})


def test_pictures_of_a_long_run_are_not_all_kept(report, tmp_path):
    writer = SummaryWriter(str(tmp_path / "tensorboard"))
    for step in range(report.MAX_READ + 10):
        writer.add_image("reconstruction", np.zeros((3, 8, 40), np.uint8), step)
    writer.close()
    kept = report._events(str(tmp_path)).Images("reconstruction")
    assert len(kept) == report.MAX_READ and kept[-1].step == report.MAX_READ + 9


@pytest.fixture
def browse(launch, tmp_path):
    """Opens a page; gives what its console said, and a screenshot [H, W, 3]."""
    if "MAE_BROWSER" not in os.environ:
        pytest.skip("no Chromium: MAE_BROWSER=$(bash tools/dev/browser.sh)")

    def open_page(path):
        shot = tmp_path / "page.png"
        out = launch(
            os.environ["MAE_BROWSER"],
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-sync", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update"),
            *("--force-color-profile=srgb", "--window-size=1200,3000", "--enable-logging=stderr"),
            f"--user-data-dir={tmp_path}/profile",
            f"--screenshot={shot}",
            f"file://{path}",
        )
        said = [line for line in out.splitlines() if "CONSOLE" in line]
        return said, np.asarray(Image.open(shot).convert("RGB"))

    return open_page


@pytest.mark.slow
def test_report_in_a_browser(launch, run, browse):
    launch.python(TOOLS / "report.py", run)
    said, pixels = browse(run / "report.html")
    assert said == []
    shown = collections.Counter(map(tuple, pixels.reshape(-1, 3).tolist()))
    for level in (0, 40, 80, 100, 140, 180):
        assert shown[level, level, level] >= 40 * 8 * 13**2  # each 13 times as large
    assert shown[31, 119, 180] > 500  # the first colour of curves
    # The same look at a page that is broken:
    (run / "broken.html").write_text("<img src='gone.png'><script>gone()</script>")
    said, pixels = browse(run / "broken.html")
    assert any("gone is not defined" in line for line in said)


def test_report_of_no_run(launch, tmp_path):
    out = launch.python(TOOLS / "report.py", tmp_path, status=2)
    assert out.startswith("error: ") and "is not the output directory of a run" in out


def test_report_of_little(launch, tmp_path):
    """Without TensorBoard, environment and config, of steps that were all left out; then with what
    cannot be read."""
    run = write_run(tmp_path / "\udce9")
    lines = [{"iteration": 1, "samples": 8, "lr": 0.1, "total_loss": float("nan")}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "per_class.txt").write_bytes(b"\xff\x1b[2J\n")
    launch.python(TOOLS / "report.py", run)
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert rf"None in {tmp_path}/\xe9/tensorboard." in page.text
    assert page.rows["date"] == "unknown" and "best result" not in page.rows
    assert r"\xff\x1b[2J" in page.text

    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 2, "top1": 50}\n')
    launch.python(TOOLS / "report.py", run)
    assert "an evaluation draws it with task.confusion=True" in (run / "report.html").read_text()

    (run / "environment.json").write_text("[]")
    (run / "tensorboard").mkdir()
    out = launch.python(TOOLS / "report.py", run, status=2)
    assert out == rf"error: {tmp_path}/\xe9/environment.json is not the record of a run" + "\n"
