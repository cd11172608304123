"""Each part of a checkpoint's progress.json, as no run saves it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.engine import trainer
from libai_ext.engine.saved_progress import check_progress

SOUND = {
    "iteration": 5,
    "settings": {"train.seed": 0},
    "best": {"metric": "loss", "value": 0.5, "iteration": 3},
    "steps": {"faults": 1, "loss_scale": 1024.0, "good": 3},
    "since_last_line": {"total_loss": [0.5, 0.25]},
    "unevaluated": ["", "knn"],
}
BAD = [
    ("iteration", -1, "iteration is not a whole number of at least 0"),
    ("iteration", 10**30, "iteration is not a whole number"),
    ("settings", [], "settings is not a group of values"),
    ("settings", None, "settings is not a group of values"),
    ("best", 5, "best is not a group of values or null"),
    ("best", {"metric": "loss"}, "best.value is not a finite number"),
    ("best", {"metric": [], "value": 1}, "best.metric is not a text"),
    ("best", {"metric": "loss", "value": "1"}, "best.value is not a finite number"),
    ("best", {"metric": "loss", "value": float("nan")}, "best.value is not a finite number"),
    ("steps", "x", "steps is not a group of values"),
    ("steps", {"faults": "1"}, "steps.faults is not a finite number of at least 0"),
    ("steps", {"faults": None}, "steps.faults is not a finite number of at least 0"),
    ("steps", {"good": -1}, "steps.good is not a finite number of at least 0"),
    ("steps", {"loss_scale": 0}, "steps.loss_scale is not a finite number above 0"),
    ("steps", {"loss_scale": 10**400}, "steps.loss_scale is not a finite number above 0"),
    ("since_last_line", [1], "since_last_line is not a group of values"),
    ("since_last_line", {"total_loss": 1}, "since_last_line.total_loss is not a list: a finite"),
    ("since_last_line", {"total_loss": []}, "since_last_line.total_loss is not a list"),
    ("since_last_line", {"total_loss": ["1"]}, "since_last_line.total_loss is not a list"),
    ("unevaluated", "knn", "unevaluated is not a list of texts"),
    ("unevaluated", [1], "unevaluated is not a list of texts"),
]


@pytest.mark.parametrize("key, value, message", BAD)
def test_parts_that_no_run_saves(key, value, message):
    with pytest.raises(CheckpointError, match=f"^run/model_5/progress.json: {message}.*: resume "):
        check_progress({**SOUND, key: value}, "run/model_5")


def test_sound_progress():
    check_progress(SOUND, "x")
    check_progress({"iteration": 5, "best": None}, "x")  # version 0.1.0


@pytest.mark.parametrize("way", ["resume", "extend"])
def test_every_way_to_continue_looks_at_it(monkeypatch, way):
    monkeypatch.setattr(trainer, "latest_checkpoint", lambda run: "run/model_5")
    checkpointer = SimpleNamespace(
        get_checkpoint_file=lambda: "run/model_5", progress=lambda path: {**SOUND, "settings": []}
    )
    run = SimpleNamespace(checkpointer=checkpointer, optimizer=None)
    with pytest.raises(CheckpointError, match="^run/model_5/progress.json: settings is not a gr"):
        trainer.Trainer.resume(run) if way == "resume" else trainer.Trainer.extend(run, "run")
