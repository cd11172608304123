"""Accuracy with and without pre-training: each protocol, from both starts.

    .venv/bin/python tools/benchmarks/protocols.py digits|cifar10 [--seeds 2] [key=value ...]

Pre-trains, then runs each protocol from the pre-trained weights and from scratch, once a seed, and
writes the table into projects/MAE/README.md and the metrics of all runs into docs/logs. Runs that
have ended are not repeated, an interrupted one is resumed. ``key=value`` goes to every run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from markers import Place

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "projects/MAE/README.md"
LOGS = ROOT / "docs/logs"
# What environment.json says of the machine and the run, without paths.
KEPT = ("started", "commit", "processor", "cores", "memory", "python", "oneflow", "libai")


class Recipe(NamedTuple):
    pretraining: str
    finetuning: str
    probe: tuple[str, ...]  # config of the linear probe, options
    prepare: tuple[str, ...] = ()  # a command that makes the data


RECIPES = {
    "digits": Recipe(
        "mae_digits",
        "mae_digits_finetune",
        ("mae_digits_linprobe",),
        ("tools/digits.py", "data/digits"),
    ),
    "cifar10": Recipe(
        "mae_cifar10_small",
        "mae_cifar10_small_finetune",
        ("mae_cifar10_small_finetune", "model.n_partial=0"),
    ),
}
PARTS = {  # what is trained: option
    "MLP of the last block (`n_partial=0.5`)": ("model.n_partial=0.5",),
    "the last block (`n_partial=1`)": ("model.n_partial=1",),
    "the last two blocks (`n_partial=2`)": ("model.n_partial=2",),
    "everything": (),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("--output", type=Path, help="folder of the runs (output/protocols/RECIPE)")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each protocol (1)")
    parser.add_argument("options", nargs="*", metavar="key=value")
    args = parser.parse_args()
    recipe = RECIPES[args.recipe]
    place = Place(README, f"tools/benchmarks/protocols.py {args.recipe}")
    output = args.output or Path("output/protocols", args.recipe)
    if recipe.prepare:
        run(sys.executable, *recipe.prepare)
    pretrained = output / "pretraining"
    train(recipe.pretraining, pretrained, *args.options)
    starts = {
        "scratch": "finetune.enable=False",
        "pretrained": f"finetune.path={pretrained}",
    }
    rows = []
    protocols = {"the head (linear probe)": recipe.probe}
    protocols.update({name: (recipe.finetuning, *part) for name, part in PARTS.items()})
    for number, (name, (config, *own)) in enumerate(protocols.items()):
        cells = []
        for start, option in starts.items():
            accuracies = []
            for seed in range(args.seeds):
                folder = output / f"{number}_{start}_{seed}"
                train(config, folder, *own, option, f"train.seed={seed}", *args.options)
                accuracies.append(f"{top1(folder):.1f}")
            cells.append(", ".join(accuracies))
        rows.append(f"| {name} | {' | '.join(cells)} |\n")
        print(rows[-1], end="", flush=True)
    keep_logs(output, LOGS / args.recipe)
    heading = "| trained on labels | from scratch | pre-trained |\n|---|---|---|\n"
    place.write(heading + "".join(rows))


def train(config: str, folder: Path, *options: str) -> None:
    """Run a recipe to its end; nothing if it is there."""
    if (ROOT / folder / "model_final").is_dir():
        return
    resume = ["--resume"] if (ROOT / folder).is_dir() else []
    program = ["tools/train.sh", "projects/MAE/train_net.py", f"projects/MAE/configs/{config}.py"]
    run("bash", *program, "1", *resume, f"train.output_dir={folder}", *options)


def run(*command: str) -> None:
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    if result.returncode:
        sys.exit(result.returncode)


def top1(folder: Path) -> float:
    """Top-1 in per cent after the last iteration."""
    lines = (ROOT / folder / "metrics.jsonl").read_text().splitlines()
    return json.loads(lines[-1])["top1"]


def keep_logs(output: Path, logs: Path) -> None:
    """Copy the metrics of each run, and what it ran on; ``tools/plot.py`` reads the copies."""
    for metrics in sorted((ROOT / output).glob("*/metrics.jsonl")):
        folder = logs / metrics.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(metrics, folder / metrics.name)
        environment = json.loads((metrics.parent / "environment.json").read_text())
        kept = {key: environment[key] for key in KEPT}
        (folder / "environment.json").write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
