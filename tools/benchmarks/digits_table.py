"""Accuracy with and without pre-training on the quickstart's digits.

    .venv/bin/python tools/benchmarks/digits_table.py

Runs the quickstart's pre-training if ``output/digits`` has none, then each protocol from the
pre-trained weights and from scratch, and updates the table in projects/MAE/README.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from markers import write_between

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "projects/MAE/README.md"
CONFIGS = "projects/MAE/configs"
# What is trained, the config, its options.
PROTOCOLS = (
    ("the head (linear probe)", "mae_digits_linprobe", ()),
    ("MLP of the last block (`n_partial=0.5`)", "mae_digits_finetune", ("model.n_partial=0.5",)),
    ("the last block (`n_partial=1`)", "mae_digits_finetune", ("model.n_partial=1",)),
    ("the last two blocks (`n_partial=2`)", "mae_digits_finetune", ("model.n_partial=2",)),
    ("everything", "mae_digits_finetune", ()),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pretrained", default="output/digits", help="folder of the quickstart")
    parser.add_argument("--output", type=Path, default=Path("output/digits_table"))
    args = parser.parse_args()
    if not (ROOT / args.pretrained / "last_checkpoint").is_file():
        run(sys.executable, "tools/digits.py", "data/digits")
        train("mae_digits", f"train.output_dir={args.pretrained}")
    rows: list = []
    for name, config, options in PROTOCOLS:
        common = [*options, "graph.enabled=False"]
        scratch, pretrained = (
            accuracy(config, args.output / f"{len(rows)}_{weights}", *common, start)
            for weights, start in (
                ("scratch", "finetune.enable=False"),
                ("pretrained", f"finetune.path={args.pretrained}"),
            )
        )
        rows.append(f"| {name} | {scratch:.1f} | {pretrained:.1f} |\n")
        print(rows[-1], end="", flush=True)
    heading = "| trained on labels | from scratch | pre-trained |\n|---|---|---|\n"
    write_between(README, "tools/benchmarks/digits_table.py", heading + "".join(rows))


def accuracy(config: str, folder: Path, *options: str) -> float:
    """Top-1 in per cent after the last iteration."""
    train(config, f"train.output_dir={folder}", *options)
    lines = (ROOT / folder / "metrics.jsonl").read_text().splitlines()
    return json.loads(lines[-1])["top1"]


def train(config: str, *options: str) -> None:
    run(
        "bash",
        "tools/train.sh",
        "projects/MAE/train_net.py",
        f"{CONFIGS}/{config}.py",
        "1",
        *options,
    )


def run(*command: str) -> None:
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    if result.returncode:
        sys.exit(result.returncode)


if __name__ == "__main__":
    main()
