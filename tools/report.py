"""Write a run's results as one self-contained HTML file: numbers, curves, pictures.

    .venv/bin/python tools/report.py RUN_DIR [--output FILE.html]

By default, FILE is RUN_DIR/report.html.
"""

from __future__ import annotations

import argparse
import base64
import datetime
import io
import json
import logging
import math
import statistics
import tempfile
from html import escape
from pathlib import Path
from typing import Callable, Iterable, Mapping

from plot import draw, labels
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from libai_ext.engine import cli as entry
from libai_ext.engine import environment, metric_names
from libai_ext.engine.run_folder import Series, read_metrics, read_text
from libai_ext.errors import ConfigError, DataError
from libai_ext.text import printable, printable_lines

# Metric -> its heading.
HEADINGS = {
    metric_names.TRAINING_LOSS: "training loss",
    metric_names.EVALUATION_LOSS: "evaluation loss",
    metric_names.TOP1: "top 1, %",
    metric_names.TOP5: "top 5, %",
    f"ema_{metric_names.EVALUATION_LOSS}": "evaluation loss of averages",
    f"ema_{metric_names.TOP1}": "top 1 of averages, %",
}
# A run's result is the first of these metrics that it has.
BEST = (metric_names.TOP1, metric_names.EVALUATION_LOSS)
# Metric -> heading, factor, unit.
COSTS = {
    metric_names.SPEED: ("speed", 1, "images/s"),
    metric_names.DATA_WAIT: ("waiting for data", 100, "%"),
    metric_names.MEMORY: ("memory", 1, "GiB"),
}
# Pictures are spread evenly over those that are read: of a long run, not all fit into memory.
MAX_PICTURES, MAX_READ = 6, 60

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; } td, th { padding: .2rem 1rem .2rem 0; text-align: left;
  vertical-align: top; }
th { font-weight: 600; white-space: nowrap; } td { font-variant-numeric: tabular-nums; }
.curves svg { width: 100%; height: auto; background: white; border-radius: 6px; }
.pictures { display: flex; flex-wrap: wrap; gap: 1.5rem; }
figure { margin: 0; } figcaption { font-size: .9rem; }
.pictures img { image-rendering: pixelated; max-width: 100%; height: auto; }
pre { background: var(--soft); padding: 1rem; overflow-x: auto; font-size: .85rem; }
summary { cursor: pointer; }
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN_DIR")
    parser.add_argument("--output", metavar="FILE")
    args = parser.parse_args()
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    target = Path(args.output or Path(args.run, "report.html"))
    text = page(args.run)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {target}: {error}") from error
    print(printable(str(target)))


def page(run: str) -> str:
    """The HTML of a run's output directory.

    Raises:
        DataError: ``run`` is no output directory, or a file in it cannot be read.
    """
    metrics = read_metrics(run)
    (name,) = labels([run])
    events = _events(run)
    ran = _environment(run)
    about = ran.pop("run", {})
    results = {**when(ran.pop("started", None), events), **summary(metrics)}
    parts = [
        f"<h1>{escape(name)}</h1>",
        _section("Summary", _table(results)),
        *([_section("Model and settings", _table(about))] if about else []),
        _section("Curves", f'<div class="curves">{_svg(draw({name: metrics}))}</div>'),
        _section("Pictures", _pictures(events) or f"<p>None in {_shown(run)}/tensorboard.</p>"),
    ]
    path = Path(run, "confusion.png")
    if path.is_file() or metric_names.TOP1 in metrics:
        parts.append(_section("Confusion", _confusion(path)))
    for title, file in (("Evaluation by class", "per_class.txt"), ("Config", "config.yaml")):
        path = Path(run, file)
        if path.is_file():
            parts.append(_section(title, _folded(file, read_text(path))))
    if ran:
        parts.append(_section("Environment", _table(ran)))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(name)}</title><style>{STYLE}</style></head>\n"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def summary(metrics: Mapping[str, Series]) -> dict[str, str]:
    """The most important numbers: heading -> text."""
    # Other evaluators' results have names like name/metric.
    headings = {**HEADINGS, **{name: name for name in metrics if "/" in name}}
    found = {name: _finite(metrics[name]) for name in (*headings, *COSTS) if name in metrics}
    found = {name: series for name, series in found.items() if series.values}
    rows = {}
    for name in (*BEST, *headings):
        choose = _better(name)
        if name in found and choose is not None:
            rows["best result"] = f"{headings[name]} {_at(choose, found[name])}"
            break
    every = next(iter(metrics.values()))
    rows["iterations"] = f"{every.iterations[-1]:,}"
    if "samples" in metrics:
        rows["samples"] = f"{metrics['samples'].values[-1]:,}"
    for name, heading in headings.items():
        if name in found:
            last = found[name].values[-1]
            rows[heading] = f"{last:.4g} at the end ({_extremes(name, found[name])})"
    for name, (heading, factor, unit) in COSTS.items():
        if name in found:
            median = factor * statistics.median(found[name].values)
            rows[heading] = f"{median:.3g} {unit} (median)"
    return rows


def _finite(series: Series) -> Series:
    pairs = [pair for pair in zip(*series) if math.isfinite(pair[1])]
    return Series([iteration for iteration, _ in pairs], [value for _, value in pairs])


def _better(name: str) -> Callable | None:
    """``min`` or ``max``; None for a metric of a user's evaluator, of which it is not known."""
    if name.endswith("loss"):
        return min
    return max if name.endswith((metric_names.TOP1, metric_names.TOP5)) else None


def _extremes(name: str, series: Series) -> str:
    choose = _better(name)
    if choose is not None:
        return f"best: {_at(choose, series)}"
    return f"lowest: {_at(min, series)}, highest: {_at(max, series)}"


def _at(choose: Callable, series: Series) -> str:
    value = choose(series.values)
    return f"{value:.4g} at iteration {series.iterations[series.values.index(value)]:,}"


def when(started: object, events: EventAccumulator) -> dict[str, str]:
    """Date and duration of a run, if known: from the earliest time in its files to the last logging
    step."""
    tags = events.Tags()["scalars"]
    times = [event.wall_time for tag in tags for event in events.Scalars(tag)]
    try:
        times.append(datetime.datetime.fromisoformat(str(started)).timestamp())
    except ValueError:
        pass  # version 0.1 did not save it
    if not times:
        return {"date": "unknown"}
    first, last = (datetime.datetime.fromtimestamp(pick(times)) for pick in (min, max))
    seconds = datetime.timedelta(seconds=round((last - first).total_seconds()))
    return {"date": f"{first:%Y-%m-%d %H:%M}", "duration": f"{seconds} (h:mm:ss)"}


def _events(run: str) -> EventAccumulator:
    """Scalars and pictures of TensorBoard's files, empty if there are none."""
    with tempfile.TemporaryDirectory() as scratch:
        # TensorBoard cannot read a folder whose path is not UTF-8.
        link = Path(scratch, "tensorboard")
        link.symlink_to(Path(run, "tensorboard").absolute())
        events = EventAccumulator(str(link), {"images": MAX_READ, "scalars": 0})
        return events.Reload() if link.is_dir() else events


def _environment(run: str) -> dict:
    path = Path(run, environment.FILE)
    if not path.is_file():
        return {}
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("run", {}), dict):
        raise DataError(f"{path} is not the record of a run")
    return content


def _pictures(events: EventAccumulator) -> str:
    """Some of TensorBoard's pictures."""
    found = []
    for tag in events.Tags()["images"]:
        images = events.Images(tag)
        count = min(MAX_PICTURES, len(images))
        places = {round(i * (len(images) - 1) / max(1, count - 1)) for i in range(count)}
        found += [_picture(tag, images[place]) for place in sorted(places)]
    if not found:
        return ""
    note = "<p>Each row: original, masked, reconstruction, reconstruction + visible.</p>"
    return f'{note}<div class="pictures">{"".join(found)}</div>'


def _confusion(path: Path) -> str:
    if not path.is_file():
        return "<p>None: an evaluation draws it with task.confusion=True.</p>"
    data = base64.b64encode(path.read_bytes()).decode()
    note = "<p>Of the last evaluation: a row for each true class, a column for each predicted.</p>"
    return f'{note}<img src="data:image/png;base64,{data}" alt="confusion matrix">'


def _picture(tag: str, event) -> str:
    """A picture, enlarged by a whole factor to about half the page's width."""
    width = event.width * max(1, round(520 / event.width))
    data = base64.b64encode(event.encoded_image_string).decode()
    caption = f"{escape(tag)}, iteration {event.step:,}"
    return (
        f'<figure><img src="data:image/png;base64,{data}" width="{width}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _svg(figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg")
    text = out.getvalue()
    return text[text.index("<svg") :]  # without the XML header


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>\n"


def _shown(value: object) -> str:
    return escape(printable_lines(str(value)))


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{escape(title)}</summary><pre>{_shown(text)}</pre></details>"


def _table(rows: Mapping[str, object]) -> str:
    lines: Iterable[str] = (
        f"<tr><th>{_shown(key)}</th><td>{_shown(value)}</td></tr>" for key, value in rows.items()
    )
    return f"<table>{''.join(lines)}</table>"


if __name__ == "__main__":
    entry.run(main)
