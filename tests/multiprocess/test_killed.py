"""Runs that are killed, and runs that cannot save."""

from __future__ import annotations

import json

import pytest


@pytest.mark.slow
def test_killed_at_random_moments(launch):
    """The short version of ``tools/dev/soak.py``; it fails when anything is lost or differs."""
    out = launch.python("tools/dev/soak.py", "--kills", 4, timeout=900)
    rows = [line.split() for line in out.splitlines() if line.split()[:1] in (["1"], ["2"])]
    assert [row[:3] for row in rows] == [
        ["1", "eager", "mae_pretraining"],
        ["1", "graph", "mae_finetune"],
        ["2", "eager", "mae_pretraining"],
        ["2", "graph", "mae_finetune"],
    ]
    kills, inside, _, disturbed, *faults = zip(*[map(int, row[3:]) for row in rows])
    assert sum(kills) == 4 and sum(inside) >= 1 and sum(disturbed) >= 1
    assert sum(map(sum, faults)) == 0


@pytest.mark.slow
def test_all_ranks_survive_a_disk_too_small(launch, digits, small_disk):
    """No checkpoint fits: training goes on to its end, and then says that it was in vain."""
    folder = small_disk.folder / "run"
    out = launch.train(
        "projects/MAE/configs/mae_digits.py",
        2,
        f"data.train=[{digits}/train]",
        f"train.output_dir={folder}",
        "train.global_batch_size=8",
        "train.train_iter=10",
        "train.warmup_iter=2",
        "train.log_period=1",
        "train.checkpointer.period=4",
        status=2,
    )
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == list(range(1, 11))
    errors = [line for line in out.splitlines() if "No space left on device" in line]
    assert len([line for line in errors if line.endswith("training continues")]) >= 3
    assert errors[-1].startswith("error: checkpoint") and "model_final" in errors[-1]
    assert "Traceback" not in out
    assert not list(folder.glob("model_*"))
