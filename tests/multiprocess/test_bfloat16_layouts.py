"""Runs with products of bfloat16: the curve of float32, on any layout; refused where the CPU has
no instructions for them."""

from __future__ import annotations

import json
import shutil

import pytest

from libai_ext import kernels

CONFIG = "projects/MAE/configs/mae_digits.py"
ITERATIONS, SAVED_AT = 12, 6
AMP = "train.amp.enabled=True"
PARTS = {"dp2": "data", "tp2": "tensor", "pp2": "pipeline"}


class Runs:
    """Small runs, each in a folder of its own, with one launch for several."""

    def __init__(self, launch, digits, root):
        self.launch, self.digits, self.root = launch, digits, root

    def command(self, name: str, *options: str) -> list[str]:
        return [
            "--config-file",
            CONFIG,
            f"data.train=[{self.digits}/train]",
            f"data.test=[{self.digits}/test]",
            f"train.output_dir={self.root / name}",
            "model.embed_dim=32",
            "model.num_heads=2",
            "model.depth=2",
            "model.decoder_depth=1",
            "train.train_micro_batch_size=null",
            "train.global_batch_size=32",
            f"train.train_iter={ITERATIONS}",
            "train.warmup_iter=2",
            "train.log_period=1",
            f"train.checkpointer.period={SAVED_AT}",
            "train.evaluation.enabled=False",
            "dataloader.train.num_workers=0",
            *options,
        ]

    def start(self, processes: int, *commands: list[str], status: int = 0) -> str:
        path = self.root / f"commands-{processes}.json"
        path.write_text(json.dumps(commands))
        return self.launch.python(
            *("-m", "libai_ext.launch", "--nproc-per-node", processes),
            *("tests/multiprocess/many_runs.py", path),
            status=status,
        )

    def curve(self, name: str) -> dict[int, float]:
        lines = (self.root / name / "metrics.jsonl").read_text().splitlines()
        return {line["iteration"]: line["total_loss"] for line in map(json.loads, lines)}


@pytest.mark.slow
def test_the_curve_of_float32_on_any_layout(launch, digits, tmp_path):
    runs = Runs(launch, digits, tmp_path)
    if not kernels.bfloat16_instructions():
        out = runs.start(1, runs.command("refused", AMP), status=2)
        assert "train.amp: on CPU it means bfloat16 products, which need a CPU with avx512" in out
        assert not (tmp_path / "refused").exists()
        return
    # float32 comes last: the process had the other products before.
    modes = {"eager": "graph.enabled=False", "graph": "graph.enabled=True"}
    commands = [runs.command(name, AMP, mode) for name, mode in modes.items()]
    runs.start(1, *commands, runs.command("float32", "graph.enabled=False"))
    exact = runs.curve("float32")
    assert list(exact) == list(range(1, ITERATIONS + 1))
    assert exact[ITERATIONS] < 0.7 * exact[1]
    for name in modes:
        assert runs.curve(name) == pytest.approx(exact, rel=1e-2)
        assert runs.curve(name)[1] != pytest.approx(exact[1], rel=1e-6)
        assert "bfloat16 products (" in (tmp_path / name / "log.txt").read_text()
    assert "loss_scale" not in (tmp_path / "graph" / "metrics.jsonl").read_text()

    layouts = [
        runs.command(name, AMP, "graph.enabled=True", f"train.dist.{part}_parallel_size=2")
        for name, part in PARTS.items()
    ]
    runs.start(2, *layouts)
    for name in PARTS:
        assert runs.curve(name) == pytest.approx(runs.curve("graph"), rel=1e-3), name

    shutil.copytree(tmp_path / "eager", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "model_final")
    (tmp_path / "resumed" / "last_checkpoint").write_text(f"model_{SAVED_AT - 1:07d}")
    resumed = runs.command("resumed", AMP, "graph.enabled=False", "--resume")
    runs.start(1, resumed)
    assert runs.curve("resumed") == runs.curve("eager")
