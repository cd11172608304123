"""Time training steps against PyTorch, in pairs of alternating runs on this machine's CPU.

    .venv/bin/python tools/benchmarks/steps.py --oracle $(bash tools/dev/oracle.sh) [--write]

The peers are Hugging Face's ViTMAE (pre-training) and ViT (fine-tuning; it has no stochastic
depth, ours runs with 0.1), and with --official the official code, with the same sizes, batch and
AdamW (fused). Float32 is compared with PyTorch in float32; products of bfloat16 with PyTorch under
autocast, and in float32 with products of bfloat16 only. "Compiled" is PyTorch's model after
torch.compile, which takes about a minute a model. Each side has its own process, which is stopped
while another one runs; its first step after that is slower and is not timed.

Prints two tables: medians in seconds, the median ratio within pairs, peak memory, and the share of
the step's time that its matrix products would take at the best rate of the same run. --write also
puts them into README.md.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from markers import Place
from steps_side import (
    AUTOCAST,
    COMPILED,
    COMPILED_AUTOCAST,
    OFFICIAL,
    OURS,
    PRODUCTS_ONLY,
    SIZES,
    flops,
)

from libai_ext.engine.environment import processor
from libai_ext.kernels.threads import configure_environment

ROOT = Path(__file__).resolve().parents[2]
NAMES = {"base": "ViT-B/16", "tiny": "tiny", "cifar": "CIFAR-10"}
TASKS = {"pretrain": "pre-training", "finetune": "fine-tuning"}
FLOAT32 = "PyTorch"
# Of each precision: PyTorch's sides. Ratios are to the last one.
PRECISIONS = {
    "float32": (COMPILED, FLOAT32),
    "bfloat16 products": (PRODUCTS_ONLY, COMPILED_AUTOCAST, AUTOCAST),
}


class Measured(NamedTuple):
    """One step, on each side by its name."""

    task: str
    size: str
    times: dict[str, list[float]]  # seconds of a step, one for each pair
    memory: dict[str, float]  # peak, GiB
    rate: float  # best one of matrix products, FLOP/s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--oracle", required=True, help="interpreter with torch and transformers")
    parser.add_argument(
        "--official", metavar="DIR", help="clone of facebookresearch/mae, to time it too"
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--sides", nargs="+", choices=OURS, default=list(OURS)[:4])
    parser.add_argument("--pairs", type=int, default=7, help="measurements of each side")
    parser.add_argument("--write", action="store_true", help="update README.md")
    args = parser.parse_args()
    place = Place(ROOT / "README.md", "tools/benchmarks/steps.py")
    if "avx512_bf16" not in Path("/proc/cpuinfo").read_text():
        print("this CPU has no products of bfloat16: float32 only", file=sys.stderr)
        args.sides = [side for side in args.sides if not side.endswith("bf16")]
    tables = [table(precision, args) for precision in PRECISIONS]
    text = f"{setting(args)}\n\n" + "\n".join(filter(None, tables))
    print(text)
    if args.write:
        place.write(text)


def setting(args: argparse.Namespace) -> str:
    """What the numbers depend on."""
    command = "import torch, transformers as t; print(torch.__version__, t.__version__)"
    versions = subprocess.check_output([args.oracle, "-c", command], text=True).split()
    return (
        f"{processor()}, {os.cpu_count()} CPUs; PyTorch {versions[0]}, transformers "
        f"{versions[1]}; medians of {args.pairs} pairs."
    )


def table(precision: str, args: argparse.Namespace) -> str:
    """Measure all steps in a precision; its table, or nothing if no side has it."""
    own = [side for side in args.sides if side.endswith("bf16") == (precision != "float32")]
    if not own:
        return ""
    sides = [*PRECISIONS[precision], *own]
    if args.official and precision == "float32":
        sides.insert(0, OFFICIAL)
    measured = [measure(task, size, sides, args) for size in args.sizes for task in args.tasks]
    return as_markdown(precision, measured)


def measure(task: str, size: str, sides: list[str], args: argparse.Namespace) -> Measured:
    """Alternate steps of all sides."""
    peers = {side: Peer(side, task, size, args) for side in sides}
    times: dict[str, list[float]] = {side: [] for side in sides}
    rates = []
    for _ in range(args.pairs):
        for side, peer in peers.items():
            times[side].append(peer.ask("step"))
        rates += [peer.ask("gemm") for peer in peers.values()]
    memory = {side: peer.ask("memory") for side, peer in peers.items()}
    for peer in peers.values():
        peer.close()
    seconds = {side: round(statistics.median(values), 3) for side, values in times.items()}
    print(f"{task} {size}: {seconds}", file=sys.stderr)
    return Measured(task, size, times, memory, max(rates))


def as_markdown(precision: str, measured: list[Measured]) -> str:
    """A table with a row for each step."""
    sides = list(measured[0].times)
    reference = PRECISIONS[precision][-1]
    columns = [precision, *(f"{side}, s" for side in sides), "memory, GiB", "of the best rate, %"]
    lines = [columns, ["---"] * len(columns)]
    lines += [
        [f"{NAMES[row.size]}, batch {SIZES[row.size][-1]}, {TASKS[row.task]}"]
        + [seconds(row, side, reference) for side in sides]
        + [", ".join(f"{row.memory[side]:.1f}" for side in sides)]
        + [", ".join(f"{share(row, side):.0f}" for side in sides)]
        for row in measured
    ]
    best = max(row.rate for row in measured)
    caption = (
        f"In brackets: x {reference}. The last two columns have a number for each program, in the "
        "order of the columns before. 100 %: a step takes as long as its matrix products would at "
        f"{best / 1e9:.0f} GFLOP/s, the best rate.\n"
    )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n" + caption


def seconds(row: Measured, side: str, reference: str) -> str:
    """The median of a step, and its ratio to the reference."""
    median = statistics.median(row.times[side])
    text = f"{median:.2f}" if median >= 1 else f"{median:.3f}"
    if side == reference:
        return text
    pairs = zip(row.times[side], row.times[reference])
    return f"{text} ({statistics.median(own / other for own, other in pairs):.2f})"


def share(row: Measured, side: str) -> float:
    """Per cent of a step that its products would take at the best rate."""
    return 100 * flops(row.task, row.size) / row.rate / statistics.median(row.times[side])


class Peer:
    """A process that runs one command at a time."""

    def __init__(self, side: str, task: str, size: str, args: argparse.Namespace):
        environment = dict(os.environ, **OURS.get(side, {}))
        if side in OURS:  # as the launcher does
            configure_environment(environ=environment)
        if side == OFFICIAL:
            environment["PYTHONPATH"] = args.official
        python = sys.executable if side in OURS else args.oracle
        self.process: Any = subprocess.Popen(
            [python, Path(__file__).with_name("steps_side.py"), side, task, size],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.process.stdout.readline()  # built and warmed up
        self.process.send_signal(signal.SIGSTOP)

    def ask(self, command: str) -> float:
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        answer = float(self.process.stdout.readline())
        self.process.send_signal(signal.SIGSTOP)  # threads of some libraries spin when idle
        return answer

    def close(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.close()
        self.process.wait()


if __name__ == "__main__":
    main()
