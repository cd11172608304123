"""Measure the memory of each process on CPU under each layout.

    .venv/bin/python tools/benchmarks/layouts.py [key=value ...] [--layouts 1,1,1 2,1,1 ...]

Real processes train a few eager steps on random images. It counts parameters and AdamW's moments;
the peak is resident memory above that of an idle engine. Each number is the maximum over the
processes.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

from libai_ext.startup import start

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "projects/MAE/configs/mae_pretraining.py"
OPTIONS = ["model.arch=mae_vit_small_patch8", "train.global_batch_size=32", "graph.enabled=False"]
LAYOUTS = ["1,1,1", "2,1,1", "1,2,1", "1,1,2", "2,2,1", "2,1,2", "1,2,2", "2,2,2"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layouts", nargs="+", default=LAYOUTS, help="data,tensor,pipeline")
    parser.add_argument("options", nargs="*", default=[], metavar="key=value")
    args = parser.parse_intermixed_args()
    start()
    print("| data x tensor x pipeline | parameters + optimizer, MB | of one process | peak, MB |")
    print("|---|---|---|---|")
    whole = states_of_one(args.options)
    for text in args.layouts:
        sizes = [int(size) for size in text.split(",")]
        states, peak = measured(sizes, args.options)
        print(
            f"| {' x '.join(map(str, sizes))} | {states / 1e6:.0f} | {states / whole:.0%} "
            f"| {peak / 1e6:.0f} |",
            flush=True,
        )


def layout_options(sizes) -> list[str]:
    names = ("data", "tensor", "pipeline")
    return [f"train.dist.{name}_parallel_size={size}" for name, size in zip(names, sizes)]


def measured(sizes, options) -> tuple[int, int]:
    """Maximum of states and of peak over the processes, in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        launcher = ["-m", "libai_ext.launch", "--nproc-per-node", str(math.prod(sizes))]
        rank = [str(ROOT / "tools/benchmarks/layouts_rank.py"), folder, CONFIG]
        subprocess.run(
            [sys.executable, *launcher, *rank, *OPTIONS, *layout_options(sizes), *options],
            check=True,
            cwd=ROOT,
        )
        ranks = [json.loads(path.read_text()) for path in Path(folder).glob("rank*.json")]
    return max(rank["states"] for rank in ranks), max(rank["rise"] for rank in ranks)


def states_of_one(options) -> int:
    """Bytes of parameters and moments on one process."""
    from libai_ext.config import lazy_config
    from projects.MAE.modeling.archs import resolve_arch
    from projects.MAE.parallel.costs import layers_of

    cfg = lazy_config.override(lazy_config.load(str(ROOT / CONFIG)), [*OPTIONS, *options])
    resolve_arch(cfg.model)
    return 12 * sum(layer.parameters for layer in layers_of(cfg.model))


if __name__ == "__main__":
    main()
