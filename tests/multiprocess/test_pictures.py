"""Pictures in the event file are the model's own, in each mode, on one process and on two."""

from __future__ import annotations

import event_pictures
import pytest

DIGITS = "projects/MAE/configs/mae_digits.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    "processes, mode, norm", [(1, "graph", True), (2, "graph", False), (2, "eager", True)]
)
def test_grey_rectangles(launch, digits, tmp_path, processes, mode, norm):
    launch.train(
        DIGITS,
        processes,
        f"data.train=[{digits}/train]",
        f"train.output_dir={tmp_path}",
        f"graph.enabled={mode == 'graph'}",
        f"model.norm_pix_loss={norm}",
        "model.img_size=[16,48]",
        "model.depth=1",
        "train.global_batch_size=16",
        "train.train_iter=12",
        "train.warmup_iter=2",
        "train.log_period=6",
        "task.picture_period=5",
    )
    drawn = event_pictures.check(tmp_path, steps=[5, 10, 12], samples=5)
    assert drawn.shape == (5, 4, 16, 48, 3)


def test_none_when_not_asked_for(launch, digits, tmp_path):
    options = [f"data.train=[{digits}/train]", f"data.test=[{digits}/test]"]
    options += [f"train.output_dir={tmp_path}", "train.global_batch_size=4", "model.depth=1"]
    launch.train(DIGITS, 1, "--fast-dev-run", *options, "task.picture_period=0")
    events = event_pictures.EventAccumulator(str(tmp_path / "fast_dev_run/tensorboard")).Reload()
    assert events.Tags()["images"] == []
    scalars = events.Tags()["scalars"]
    assert {"total_loss", "lr", "images_per_second", "data_wait", "memory_gib"} <= set(scalars)
