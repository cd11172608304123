"""Plot the loss, learning rate, accuracy and speed of one run, or compare several runs.

    .venv/bin/python tools/plot.py RUN_DIR ... [--metrics NAME ...] [--output FILE.png]

RUN_DIR is an output directory, NAME a metric of metrics.jsonl; the suffix of FILE sets its format
(png, pdf, svg).
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from libai_ext.engine import cli as entry
from libai_ext.engine import metric_names
from libai_ext.engine.run_folder import Series, read_metrics
from libai_ext.errors import ConfigError
from libai_ext.text import printable

# Panel -> its metrics, each with a line style. Panels without metrics are not drawn.
PANELS = {
    "loss": {metric_names.TRAINING_LOSS: "-", metric_names.EVALUATION_LOSS: "o--"},
    "learning rate": {metric_names.LEARNING_RATE: "-"},
    "accuracy, %": {metric_names.TOP1: "o-", metric_names.TOP5: "o--"},
    "gradient norm": {metric_names.GRADIENT_NORM: "-"},
    "images/s": {metric_names.SPEED: "-"},
    "memory, GiB": {metric_names.MEMORY: "-"},
}
FROM_ZERO = ("images/s", "memory, GiB")
# Names in the legend if a panel shows two metrics.
NOTES = {
    metric_names.TRAINING_LOSS: "training",
    metric_names.EVALUATION_LOSS: "evaluation",
    metric_names.TOP1: "top 1",
    metric_names.TOP5: "top 5",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="plot", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR")
    parser.add_argument("--metrics", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--output", default="runs.png", metavar="FILE")
    args = parser.parse_intermixed_args()
    runs = {label: read_metrics(run) for label, run in labels(args.runs).items()}
    figure = draw(only(args.metrics, runs) if args.metrics else runs)
    try:
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(args.output, dpi=150)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write {args.output}: {error}") from error
    print(printable(args.output))


def labels(runs: Sequence[str]) -> dict[str, str]:
    """Printable name -> folder. The name is the path's last part if these differ, else the path."""
    whole = [os.path.normpath(run) for run in runs]
    if len(set(whole)) < len(whole):
        raise ConfigError("the same run is given twice")
    short = [os.path.basename(os.path.abspath(run)) for run in whole]
    chosen = short if len(set(short)) == len(short) else whole
    return dict(zip(map(printable, chosen), runs))


def only(names: Sequence[str], runs: Mapping[str, Mapping[str, Series]]):
    """The metrics of these names; some run must have each.

    Raises:
        ConfigError: no run has it, or no panel shows it.
    """
    shown = {name for own in PANELS.values() for name in own}
    found = {name for metrics in runs.values() for name in metrics if _base(name) in shown}
    for name in names:
        if name not in found:
            raise ConfigError(
                f"no run has a metric {name} to draw: choose of {', '.join(sorted(found))}"
            )
    return {
        run: {name: series for name, series in metrics.items() if name in names}
        for run, metrics in runs.items()
    }


def _base(name: str) -> str:
    """Without the evaluator of a name like name/metric."""
    return name.rpartition("/")[2]


def draw(runs: Mapping[str, Mapping[str, Series]]) -> Figure:
    """Panels in two columns, with iterations on the x axis and one colour per run."""
    found = list(dict.fromkeys(name for metrics in runs.values() for name in metrics))
    shown = {}
    for panel, own in PANELS.items():
        others = {name: own[_base(name)] for name in found if "/" in name and _base(name) in own}
        if others or any(name in found for name in own):
            shown[panel] = {**own, **others}
    rows = -(-len(shown) // 2)
    figure = Figure(figsize=(11, 0.6 + 2.9 * rows), layout="constrained")
    for place, (panel, styles) in enumerate(shown.items(), 1):
        axes = figure.add_subplot(rows, 2, place)
        axes.set(title=panel, xlabel="iteration")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        present = [name for name in styles if name in found]
        both = len(present) > 1 or any("/" in name for name in present)
        for number, (run, metrics) in enumerate(runs.items()):
            for name, style in styles.items():
                if name in metrics:
                    note = f"{run}, {NOTES.get(name, name)}" if both else run
                    axes.plot(*metrics[name], style, color=f"C{number % 10}", label=note, ms=3)
        if panel in FROM_ZERO:
            axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
        if both or len(runs) > 1:
            _add_legend(axes)
    return figure


def _add_legend(axes) -> None:
    """Show all names as plain text: by default matplotlib reads ``$`` as a formula, and leaves out
    names that begin with ``_``."""
    labels = ["line"] * len(axes.lines)
    legend = axes.legend(axes.lines, labels, fontsize="small", framealpha=0.8, edgecolor="none")
    for text, line in zip(legend.get_texts(), axes.lines):
        text.set(text=line.get_label(), parse_math=False)


if __name__ == "__main__":
    entry.run(main)
