"""Linear probing gives the same curve on one process and on two."""

from __future__ import annotations

import json

import pytest

LINPROBE = "projects/MAE/configs/mae_linprobe.py"


@pytest.fixture(scope="module")
def train(launch, digits, tmp_path_factory):
    """Five iterations, then an evaluation."""

    def run(processes):
        folder = tmp_path_factory.mktemp("run")
        launch.train(
            LINPROBE,
            processes,
            f"data.train=[{digits}/train]",
            f"data.test=[{digits}/test]",
            f"train.output_dir={folder}",
            "model.arch=mae_vit_digits",
            "model.depth=2",
            "model.num_classes=10",
            "finetune.enable=False",
            "train.global_batch_size=16",
            "train.train_iter=5",
            "train.warmup_iter=1",
            "train.base_lr=1",
            "train.log_period=1",
        )
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    return run


def numbers(lines):
    """Losses by iteration, and the evaluation after the last."""
    losses = [line["total_loss"] for line in lines]
    return losses, [lines[-1][name] for name in ("top1", "top5", "eval_loss")]


@pytest.mark.slow
def test_linear_probe_on_two_processes(train):
    """The batch statistics are those of the whole batch: also in what is evaluated."""
    one, two = (numbers(train(count)) for count in (1, 2))
    assert two[0] == pytest.approx(one[0], rel=1e-5)
    assert two[1] == pytest.approx(one[1], rel=1e-5)
    assert len(set(one[0])) == 5
