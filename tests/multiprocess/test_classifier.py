"""Fine-tuning and probing give the same curve on one process and on two."""

from __future__ import annotations

import json

import pytest

FINETUNE = "projects/MAE/configs/mae_finetune.py"
LINPROBE = "projects/MAE/configs/mae_linprobe.py"


@pytest.fixture(scope="module")
def train(launch, digits, tmp_path_factory):
    """Five iterations with every augmentation of the recipe, then an evaluation."""

    def run(config, processes, *options):
        folder = tmp_path_factory.mktemp("run")
        launch.train(
            config,
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
            "train.base_lr=0.02",
            "train.log_period=1",
            *options,
        )
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    return run


def numbers(lines):
    """Losses by iteration, and the evaluation after the last."""
    losses = [line["total_loss"] for line in lines]
    return losses, [lines[-1][name] for name in ("top1", "top5", "loss")]


@pytest.fixture(scope="module")
def one_process(train):
    options = ["graph.enabled=False", "dataloader.train.dataset.mixer.group_size=4"]
    return numbers(train(FINETUNE, 1, *options))


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("mode", ["graph", "eager"])
def test_fine_tuning_on_two_processes(train, one_process, mode, steps):
    losses, results = numbers(
        train(
            FINETUNE,
            2,
            f"graph.enabled={mode == 'graph'}",
            f"train.num_accumulation_steps={steps}",
            "dataloader.train.dataset.mixer.group_size=4",
        )
    )
    assert losses == pytest.approx(one_process[0], rel=1e-5)
    assert results == pytest.approx(one_process[1], rel=1e-5)
    assert len(set(losses)) == 5


@pytest.mark.slow
def test_linear_probe_on_two_processes(train):
    """The batch statistics are those of the whole batch: also in what is evaluated."""
    one, two = (numbers(train(LINPROBE, count, "train.base_lr=1")) for count in (1, 2))
    assert two[0] == pytest.approx(one[0], rel=1e-5)
    assert two[1] == pytest.approx(one[1], rel=1e-5)
    assert len(set(one[0])) == 5
