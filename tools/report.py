"""Write a run's results as one HTML file that needs nothing else: numbers, curves, pictures.

    python tools/report.py RUN_DIR [--output FILE.html]

FILE is RUN_DIR/report.html when not given.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import logging
import statistics
from html import escape
from pathlib import Path
from typing import Iterable, Mapping

from plot import draw, labels
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from libai_ext.engine import environment
from libai_ext.engine import main as entry
from libai_ext.engine.run_folder import Series, read_metrics
from libai_ext.errors import ConfigError

# Spread evenly over the run: its pictures show how it came along.
MAX_PICTURES = 6

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; } td, th { padding: .2rem 1rem .2rem 0; text-align: left; }
th { font-weight: 600; } td { font-variant-numeric: tabular-nums; }
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
    print(target)


def page(run: str) -> str:
    """The HTML of a run's output directory.

    Raises:
        DataError: it is none.
    """
    metrics = read_metrics(run)
    (name,) = labels([run])
    parts = [
        f"<h1>{escape(name)}</h1>",
        _section("Summary", _table(summary(metrics))),
        _section("Curves", f'<div class="curves">{_svg(draw({name: metrics}))}</div>'),
    ]
    pictures = [_picture(tag, event) for tag, event in _pictures(run)]
    if pictures:
        note = "<p>Each row: original, masked, reconstruction, reconstruction + visible.</p>"
        parts.append(_section("Pictures", f'{note}<div class="pictures">{"".join(pictures)}</div>'))
    for title, file in (("Evaluation by class", "per_class.txt"), ("Config", "config.yaml")):
        path = Path(run, file)
        if path.is_file():
            parts.append(_section(title, _folded(file, path.read_text(encoding="utf-8"))))
    path = Path(run, environment.FILE)
    if path.is_file():
        parts.append(_section("Environment", _table(json.loads(path.read_text()))))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(name)}</title><style>{STYLE}</style></head>\n"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def summary(metrics: Mapping[str, Series]) -> dict[str, str]:
    """The numbers one asks for first, as (heading, text)."""
    loss = metrics["total_loss"]
    best = min(range(len(loss.values)), key=loss.values.__getitem__)
    rows = {
        "iterations": f"{loss.iterations[-1]:,}",
        "samples": f"{metrics['samples'].values[-1]:,}",
        "training loss": f"{loss.values[-1]:.4f} (lowest logged: {loss.values[best]:.4f} at "
        f"{loss.iterations[best]:,})",
    }
    for name, heading in (("loss", "evaluation loss"), ("top1", "top 1, %"), ("top5", "top 5, %")):
        if name in metrics:
            rows[heading] = f"{metrics[name].values[-1]:.4g}"
    for name, heading, factor, unit in (
        ("images_per_second", "speed", 1, "images/s"),
        ("data_wait", "waiting for data", 100, "%"),
        ("memory_gib", "memory", 1, "GiB"),
    ):
        if name in metrics:
            rows[heading] = (
                f"{factor * statistics.median(metrics[name].values):.3g} {unit} (median)"
            )
    return rows


def _pictures(run: str) -> list[tuple]:
    """(name, event) of TensorBoard's pictures."""
    events = EventAccumulator(str(Path(run, "tensorboard")), {"images": 0}).Reload()
    found = []
    for tag in events.Tags()["images"]:
        images = events.Images(tag)
        count = min(MAX_PICTURES, len(images))
        places = {round(i * (len(images) - 1) / max(1, count - 1)) for i in range(count)}
        found += [(tag, images[place]) for place in sorted(places)]
    return found


def _picture(tag: str, event) -> str:
    """Enlarged by a whole number to about half the page."""
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
    return text[text.index("<svg") :]  # without the XML prologue


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>\n"


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def _table(rows: Mapping[str, object]) -> str:
    lines: Iterable[str] = (
        f"<tr><th>{escape(str(key))}</th><td>{escape(str(value))}</td></tr>"
        for key, value in rows.items()
    )
    return f"<table>{''.join(lines)}</table>"


if __name__ == "__main__":
    entry.run(main)
