"""Data that one rank cannot read for a while: all save and leave, and a restart goes on."""

from __future__ import annotations

import json

import pytest


@pytest.mark.slow
def test_the_run_saves_ends_and_is_restarted(launch, digits, tmp_path):
    out = launch(
        *("bash", "tools/train.sh", "--restarts", 1, "tests/engine/away_run.py"),
        *("projects/MAE/configs/mae_digits.py", 2),
        f"data.train=[{digits}/train]",
        f"train.output_dir={tmp_path}",
        "model.depth=1",
        "train.global_batch_size=16",
        "train.train_iter=8",
        "train.warmup_iter=1",
        "train.log_period=1",
        "dataloader.train.num_workers=1",
    )
    assert "another rank cannot read its data; ended after 5 iterations" in out
    assert "launch: rank 1 ended with exit status 74\nerror: cannot read " in out
    assert ".png: Input/output error, for more than 0.2 s\nlaunch: restart 1 of 1" in out
    assert "Traceback" not in out
    first, second = out.split("restart 1 of 1")
    assert f"Saved checkpoint {tmp_path}/model_0000004" in first
    assert f"Loaded checkpoint {tmp_path}/model_0000004" in second
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == list(range(1, 9))
