"""Pre-train ViT-B/16 for a few steps on a folder of photographs, here and in PyTorch, in turns.

    .venv/bin/python tools/benchmarks/photographs.py FOLDER --oracle $(bash tools/dev/oracle.sh)

Here it is a run of the launcher with data workers, as a user starts it; there a loop with the same
model (Hugging Face's ViTMAE), AdamW, the same crops, and a DataLoader that uses Pillow. Prints, for
each precision, the medians over the runs: images/s, and the share of the time without a batch to
work on. The first steps of a run are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRECISIONS = {"float32": "False", "bfloat16": "True"}  # train.amp.enabled
NOT_COUNTED = 3  # steps of a run, whose times are not in all metrics


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="images, as for data.train")
    parser.add_argument("--oracle", required=True, help="interpreter with torch and transformers")
    parser.add_argument("--steps", type=int, default=24, help="of a run")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each side")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2, help="processes that read images")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    args = parser.parse_args()
    print("| precision | side | images/s | x PyTorch | waits for data, % |\n|---|---|---|---|---|")
    for precision in args.precisions:
        runs = [(in_pytorch(precision, args), here(precision, args)) for _ in range(args.pairs)]
        ratio = statistics.median(ours[0] / theirs[0] for theirs, ours in runs)
        for side, results, shown in zip(("PyTorch", "here"), zip(*runs), ("1", f"{ratio:.2f}")):
            speed, wait = map(statistics.median, zip(*results))
            print(
                f"| {precision} | {side} | {speed:.2f} | {shown} | {100 * wait:.2f} |", flush=True
            )


def here(precision: str, args: argparse.Namespace) -> tuple[float, float]:
    """Images a second, and the share of the time that waits for data."""
    with tempfile.TemporaryDirectory() as folder:
        options = [
            f"data.train=[{os.path.abspath(args.folder)}]",
            "model.arch=mae_vit_base_patch16",
            f"train.global_batch_size={args.batch}",
            f"train.train_iter={args.steps}",
            "train.warmup_iter=1",
            "train.log_period=1",
            f"train.amp.enabled={PRECISIONS[precision]}",
            f"train.output_dir={folder}/run",
            f"dataloader.train.num_workers={args.workers}",
            "graph.enabled=False",
            "task.picture_period=1000000",
        ]
        program = ["projects/MAE/train_net.py", "projects/MAE/configs/mae_pretraining.py", "1"]
        run("bash", "tools/train.sh", *program, *options)
        lines = (Path(folder) / "run/metrics.jsonl").read_text().splitlines()
    return summary(lines, args)


def in_pytorch(precision: str, args: argparse.Namespace) -> tuple[float, float]:
    """The same."""
    program = str(Path(__file__).with_name("photographs_side.py"))
    numbers = map(str, (args.steps, args.batch, args.workers))
    out = run(args.oracle, program, args.folder, precision, *numbers)
    return summary(out, args)


def summary(lines: list[str], args: argparse.Namespace) -> tuple[float, float]:
    """Images a second and waiting share, from a line of JSON for each step."""
    steps = [json.loads(line) for line in lines[NOT_COUNTED:]]
    total = sum(step["time"] for step in steps)
    waited = sum(step["time"] * step["data_wait"] for step in steps)
    return args.batch * len(steps) / total, waited / total


def run(*command: str) -> list[str]:
    """Lines of a program's output."""
    result = subprocess.run(
        command, cwd=ROOT, env=dict(os.environ, PYTHONPATH=str(ROOT)), stdout=subprocess.PIPE
    )
    if result.returncode:
        sys.exit(result.returncode)
    return result.stdout.decode().splitlines()


if __name__ == "__main__":
    main()
