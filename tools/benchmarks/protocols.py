"""Accuracy with and without pre-training: each protocol, from both starts.

    .venv/bin/python tools/benchmarks/protocols.py digits|cifar10 [--seeds 2] [key=value ...]

Pre-trains, then runs each protocol from scratch and from the pre-trained weights, first all with
one seed, then with the next. At the end it writes the table into the pages, the metrics of all runs
into docs/logs, and a picture of their curves. Runs that have ended are not repeated, an interrupted
one is resumed. ``key=value`` goes to every run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple, Sequence

from markers import Place

ROOT = Path(__file__).resolve().parents[2]
PAGE = "projects/MAE/README.md"
LOGS = ROOT / "docs/logs"
PRETRAINING = "pretraining"  # folder
DIGITS, CIFAR10 = "mae_digits_finetune", "mae_cifar10_small_finetune"
# What environment.json says of the machine and the run, without paths.
KEPT = ("started", "commit", "processor", "cores", "memory", "python", "oneflow", "libai")


class Protocol(NamedTuple):
    title: str  # what the labels train
    config: str
    options: tuple[str, ...] = ()


class Recipe(NamedTuple):
    pretraining: str
    protocols: dict[str, Protocol]  # by the first word of their folders' names
    prepare: tuple[str, ...] = ()  # a command that makes the data
    pages: tuple[str, ...] = (PAGE,)  # with a place for the table
    curves: str | None = None  # picture of the runs with the first seed


HEAD = "the head (linear probe)"
MLP, BLOCK = "MLP of the last block (`n_partial=0.5`)", "the last block (`n_partial=1`)"
RECIPES = {
    "digits": Recipe(
        "mae_digits",
        {
            "head": Protocol(HEAD, "mae_digits_linprobe"),
            "mlp": Protocol(MLP, DIGITS, ("model.n_partial=0.5",)),
            "block": Protocol(BLOCK, DIGITS, ("model.n_partial=1",)),
            "blocks": Protocol(
                "the last two blocks (`n_partial=2`)", DIGITS, ("model.n_partial=2",)
            ),
            "everything": Protocol("everything", DIGITS),
        },
        ("tools/digits.py", "data/digits"),
    ),
    "cifar10": Recipe(
        "mae_cifar10_small",
        {
            "head": Protocol(HEAD, CIFAR10, ("model.n_partial=0",)),
            "mlp": Protocol(MLP, CIFAR10, ("model.n_partial=0.5",)),
            "block": Protocol(BLOCK, CIFAR10, ("model.n_partial=1",)),
            "everything": Protocol("everything", CIFAR10),
        },
        pages=("README.md", PAGE),
        curves="docs/cifar10_curves.png",
    ),
}


def parse_args(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("--output", type=Path, help="folder of the runs (output/protocols/RECIPE)")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each protocol (1)")
    parser.add_argument("options", nargs="*", metavar="key=value")
    return parser.parse_intermixed_args(words)


def main() -> None:
    args = parse_args()
    recipe = RECIPES[args.recipe]
    program = f"tools/benchmarks/protocols.py {args.recipe}"
    places = [Place(ROOT / page, program) for page in recipe.pages]
    output = args.output or Path("output/protocols", args.recipe)
    check_options(ROOT / output, args.options)
    check_logs(LOGS / args.recipe, recipe.protocols, args.seeds)
    if recipe.prepare:
        run(sys.executable, *recipe.prepare)
    pretrained = output / PRETRAINING
    train(recipe.pretraining, pretrained, *args.options)
    starts = {"scratch": "finetune.enable=False", "pretrained": f"finetune.path={pretrained}"}
    for seed in range(args.seeds):
        for name, protocol in recipe.protocols.items():
            for start, option in starts.items():
                folder = output / f"{name}_{start}_{seed}"
                own = (*protocol.options, option, f"train.seed={seed}")
                train(protocol.config, folder, *own, *args.options)
                print(f"{folder}: top-1 {read(ROOT / folder)[-1]['top1']:.1f} %", flush=True)
    keep_logs(output, LOGS / args.recipe)
    text = table(recipe.protocols, LOGS / args.recipe)
    for place in places:
        place.write(text)
    if recipe.curves:
        draw(LOGS / args.recipe, ROOT / recipe.curves)


def table(protocols: dict[str, Protocol], logs: Path) -> str:
    """Top-1 of the runs, one number a seed, as Markdown."""
    lines = ["| trained on labels | from scratch | pre-trained |\n|---|---|---|\n"]
    knn = [line["knn/top1"] for line in read(logs / PRETRAINING) if "knn/top1" in line]
    if knn:
        lines.append(f"| nothing (k-NN, 20 neighbours) | | {knn[-1]:.1f} |\n")
    for name, protocol in protocols.items():
        cells = []
        for start in ("scratch", "pretrained"):
            runs = sorted(logs.glob(f"{name}_{start}_*"))
            cells.append(", ".join(f"{read(run)[-1]['top1']:.1f}" for run in runs))
        if any(cells):
            lines.append(f"| {protocol.title} | {' | '.join(cells)} |\n")
    return "".join(lines)


def draw(logs: Path, picture: Path) -> None:
    """Loss and accuracy of the pre-training and of the runs with the first seed."""
    runs = [logs / PRETRAINING, *sorted(logs.glob("*_0"))]
    metrics = ("--metrics", "total_loss", "top1", "knn/top1")
    run(sys.executable, "tools/plot.py", *map(str, runs), *metrics, "--output", str(picture))


def train(config: str, folder: Path, *options: str) -> None:
    """Run a recipe to its end, unless it has ended."""
    if has_ended(ROOT / folder):
        return
    resume = ["--resume"] if (ROOT / folder).is_dir() else []
    program = ["tools/train.sh", "projects/MAE/train_net.py", f"projects/MAE/configs/{config}.py"]
    run("bash", *program, "1", *resume, f"train.output_dir={folder}", *options)


def run(*command: str) -> None:
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    if result.returncode:
        sys.exit(result.returncode)


def check_options(output: Path, options: Any) -> None:
    """Stop if the folder has results with other options."""
    path = output / "options.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(options)
    if path.is_file() and path.read_text() != text:
        sys.exit(f"{output} has results with other options: {path.read_text()}")
    path.write_text(text)


def check_logs(logs: Path, protocols: Any, seeds: int) -> None:
    """Stop if there are logs that this call would not replace: the table would show them too."""
    kinds = [f"{name}_{start}" for name in protocols for start in ("scratch", "pretrained")]
    paths = (path for kind in kinds for path in logs.glob(f"{kind}_*"))
    others = [path for path in paths if int(path.name.rpartition("_")[2]) >= seeds]
    if others:
        names = ", ".join(sorted(path.name for path in others))
        sys.exit(f"{logs} has logs of more seeds: set --seeds, or remove {names}")


def has_ended(folder: Path) -> bool:
    return (folder / "model_final").is_dir()


def read(folder: Path) -> list[dict]:
    """The metrics of a run, in the order of its iterations."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def keep_logs(output: Path, logs: Path) -> None:
    """Copy the metrics of each run that has ended, and what it ran on."""
    for folder in filter(has_ended, sorted((ROOT / output).iterdir())):
        kept = logs / folder.name
        kept.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "metrics.jsonl", kept / "metrics.jsonl")
        environment = json.loads((folder / "environment.json").read_text())
        values = {key: environment[key] for key in KEPT}
        values["seconds per epoch"] = round(seconds_per_epoch(read(folder), environment["run"]))
        (kept / "environment.json").write_text(json.dumps(values, indent=2) + "\n")


def seconds_per_epoch(metrics: list[dict], run: dict) -> float:
    """From the median time of an iteration, without evaluations."""
    images = int(run["samples"].replace(",", ""))
    seconds = statistics.median(line["time"] for line in metrics if "time" in line)
    return seconds * images / (metrics[0]["samples"] / metrics[0]["iteration"])


if __name__ == "__main__":
    main()
