"""Check this machine's GPUs: a table and a JSON file to attach to a report, in ten minutes.

    .venv/bin/python tools/check_gpu.py [--output check_gpu.json]

It compares ops and the first training steps with the CPU, in float32 and with mixed precision. It
tries saving, resuming, evaluation and, with several GPUs, each layout and ZeRO. It times ViT-B/16
and compares its memory with the plan. Exit status 1 if a check fails.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import digits
import numpy as np
from PIL import Image

from projects.MAE.commands import TOOLS, TRAIN_NET

DIGITS = "mae_digits"
STEPS, SAVED_AT = 20, 10
# Limits of a loss's relative difference: other order of sums; float16 products; the same kernels.
FLOAT32, AMP, SAME = 1e-3, 2e-2, 1e-5
# Speed and memory are measured with ViT-B/16.
BATCH, TIMED_STEPS, IMAGES = 64, 30, 128
MEMORY = 0.15
# Number of GPUs -> layouts: data, tensor, pipeline.
LAYOUTS = {2: [(2, 1, 1), (1, 2, 1), (1, 1, 2)], 4: [(2, 2, 1)], 8: [(2, 2, 2)]}
# Tensor cores round the inputs of float32 products; for a comparison this must be off.
EXACT = {"ONEFLOW_EP_CUDA_ENABLE_TF32_EXECUTION": "0"}


class Checks:
    """The results of the checks, each printed at once."""

    def __init__(self):
        self.rows: list[dict] = []

    def add(self, name: str, passed: bool, detail: str, **numbers) -> None:
        self.rows.append(dict(name=name, passed=passed, detail=detail, **numbers))
        print(f"{'ok  ' if passed else 'FAIL'}  {name}: {detail}", flush=True)

    def compare(self, name: str, found, expected, limit: float) -> None:
        """Compare two lists of losses; all must be above zero."""
        error = float("inf")
        if len(found) == len(expected) > 0 and min(*found, *expected) > 0:
            error = float(np.abs(np.asarray(found) / np.asarray(expected) - 1).max())
        passed = error <= limit  # false for NaN
        detail = f"largest relative difference {error:.1e}, limit {limit:.0e}"
        self.add(name, passed, detail, error=error, limit=limit)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("check_gpu.json"))
    output = parser.parse_args().output.absolute()
    start, checks = time.monotonic(), Checks()
    with tempfile.TemporaryDirectory(prefix="check_gpu-") as folder:
        digits.write(Path(folder, "data/digits"))
        device = check_ops(checks)
        if device is not None:
            check_training(checks, Path(folder), device["count"])
            check_speed(checks, Path(folder))
    report = {
        "device": device,
        "system": platform.platform(),
        "python": platform.python_version(),
        "checks": checks.rows,
        "seconds": round(time.monotonic() - start),
    }
    output.write_text(json.dumps(report, indent=1) + "\n")
    failed = [row["name"] for row in checks.rows if not row["passed"]]
    print(f"\n{len(checks.rows) - len(failed)} of {len(checks.rows)} checks passed; {output}")
    return 1 if failed or device is None else 0


def check_ops(checks: Checks) -> dict | None:
    """The GPU's properties; None if no GPU can be used."""
    result = run([sys.executable, str(TOOLS / "gpu_ops.py")])
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    if not lines:
        checks.add("device", False, result.stderr.strip())
        return None
    device, *ops = lines
    checks.add("device", True, device["device"]["text"])
    for row in ops:
        detail = f"error {row['error']:.1e}, limit {row['limit']:.0e}"
        checks.add(f"{row['op']} ({row['precision']})", row["error"] <= row["limit"], detail, **row)
    if result.returncode:
        checks.add("ops, to the end", False, result.stderr.strip())
    return device["device"]


def check_training(checks: Checks, folder: Path, gpus: int) -> None:
    """Training on the digits has the same losses on CPU and GPU."""
    on_cpu, on_gpu = Run(checks, folder / "cpu", "train.device=cpu"), Run(checks, folder / "gpu")
    on_cpu.train("20 steps on CPU")
    if on_gpu.train("20 steps on GPU", f"train.checkpointer.period={SAVED_AT}"):
        checks.compare("loss curve, GPU and CPU", on_gpu.losses(), on_cpu.losses(), FLOAT32)
        check_saved(checks, on_gpu)
    amp = Run(checks, folder / "amp", "train.amp.enabled=True")
    if amp.train("20 steps with mixed precision"):
        checks.compare("loss curve, mixed precision and CPU", amp.losses(), on_cpu.losses(), AMP)
    for sizes in [(1, 1, 1), *(s for n, many in LAYOUTS.items() if n <= gpus for s in many)]:
        check_layout(checks, folder, sizes, on_gpu)


def check_saved(checks: Checks, trained: Run) -> None:
    """Resuming from the middle, and evaluating the result on CPU and GPU."""
    whole = trained.losses()
    (trained.folder / "last_checkpoint").write_text(f"model_{SAVED_AT - 1:07d}")
    if trained.train("resume", "--resume"):
        checks.compare("loss curve, resumed", trained.losses(), whole, SAME)
    losses = [trained.evaluate(device) for device in ("cuda", "cpu")]
    checks.compare("evaluation, GPU and CPU", losses[:1], losses[1:], FLOAT32)


def check_layout(checks: Checks, folder: Path, sizes, on_gpu: Run) -> None:
    """A layout in float32, also with ZeRO if there are several data-parallel ranks."""
    names = [f"{kind}_parallel_size" for kind in ("data", "tensor", "pipeline")]
    options = [f"train.dist.{name}={size}" for name, size in zip(names, sizes)]
    text = " x ".join(map(str, sizes))
    processes = int(np.prod(sizes))
    stages = (None, 1, 2, 3) if sizes[0] > 1 else (None,)
    for stage in stages if processes > 1 else ():
        zero = [f"train.zero_optimization.stage={stage}", "train.zero_optimization.enabled=True"]
        name = f"{text} GPUs" + (f", ZeRO {stage}" if stage else "")
        run_ = Run(checks, folder / name.replace(" ", ""), *options, processes=processes)
        if run_.train(name, *(zero if stage else ())):
            checks.compare(f"loss curve, {name}", run_.losses(), on_gpu.losses(), FLOAT32)


def check_speed(checks: Checks, folder: Path) -> None:
    """ViT-B/16 pre-training, batch 64, mixed precision: images/s, and memory against the plan."""
    write_images(folder / "images")
    timed = Run(
        checks,
        folder / "speed",
        f"data.train=[{folder}/images]",
        "train.amp.enabled=True",
        f"train.global_batch_size={BATCH}",
        f"train.train_iter={TIMED_STEPS}",
        f"train.log_period={TIMED_STEPS // 2}",
        "task.picture_period=0",
        config="mae_pretraining",
        env={},
    )
    if not timed.train("ViT-B/16 with mixed precision"):
        return
    last = timed.lines()[-1]
    speed, memory = last["images_per_second"], last["memory_gib"]
    checks.add("ViT-B/16, speed", speed > 0, f"{speed:.0f} images/s", images_per_second=speed)
    options = ("--devices", "1", "--batch", str(BATCH), "--amp", "--memory", "10000")
    plan = run([sys.executable, str(TOOLS / "plan.py"), *options]).stdout
    head, _, row = (line.split(" | ") for line in plan.splitlines()[:3])
    planned = float(row[head.index("all")])
    error = memory / planned - 1
    detail = f"{memory:.2f} GiB in use, {planned:.2f} planned ({error:+.0%})"
    checks.add("ViT-B/16, memory", abs(error) <= MEMORY, detail, measured=memory, planned=planned)


class Run:
    """A training run in its own folder."""

    def __init__(self, checks, folder: Path, *options, processes=1, config=DIGITS, env=EXACT):
        self.checks, self.folder, self.processes = checks, folder, processes
        self.config, self.options, self.env = config, options, env

    def train(self, name: str, *options: str) -> bool:
        """Train; returns whether the run succeeded."""
        small = (
            []
            if self.config != DIGITS
            else [f"train.train_iter={STEPS}", "train.warmup_iter=2", "train.log_period=1"]
        )
        result = self._launch(*small, *options)
        end = "" if result.returncode == 0 else result.stderr.strip()
        self.checks.add(name, not end, end or f"{len(self.lines())} lines of metrics")
        return not end

    def evaluate(self, device: str) -> float:
        """The last checkpoint's loss on the test images."""
        out = self._launch("--eval-only", f"train.device={device}").stdout
        found = re.search(r"evaluation on \d+ samples: loss ([\d.e+-]+)", out)
        return float(found[1]) if found else float("nan")

    def losses(self) -> list[float]:
        return [line["total_loss"] for line in self.lines()]

    def lines(self) -> list[dict]:
        path = self.folder / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def _launch(self, *options: str) -> subprocess.CompletedProcess:
        launcher = ["-m", "libai_ext.launch", "--nproc-per-node", str(self.processes)]
        program = [str(TRAIN_NET), "--config-file", self.config]
        output = f"train.output_dir={self.folder}"
        command = [sys.executable, *launcher, *program, output, *self.options, *options]
        return run(command, self.env, cwd=self.folder.parent)


def write_images(folder: Path) -> None:
    """Write JPEGs that take as long to read as photographs."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        small = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC).save(
            folder / f"{number}.jpg"
        )


def run(command: list[str], env: dict[str, str] = EXACT, **options) -> subprocess.CompletedProcess:
    env = dict(os.environ, **env)
    return subprocess.run(command, env=env, capture_output=True, text=True, **options)


if __name__ == "__main__":
    sys.exit(main())
