"""Data that one rank cannot read for a while: all save and leave, and a restart goes on."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import pytest
from libai.utils.events import EventStorage

from libai_ext.engine.checkpointing import Evaluation
from libai_ext.engine.trainer import Trainer
from libai_ext.engine.unavailable_data import save_and_exit
from libai_ext.errors import DataUnavailable


def unreadable():
    raise DataUnavailable("cannot read x.png: Input/output error")


class Done:
    """A trainer whose evaluations ``""`` and ``knn`` may be missing, after 6 of 6 iterations."""

    start_iter = max_iter = done = 6

    def __init__(self, missing, away=False):
        self.unevaluated, self.away, self.asked = missing, away, []
        self.checkpointer = None

    def evaluations(self):
        return [(3, ""), (2, "knn")]

    def run_evaluator(self, name):
        self.asked.append(name)
        if self.away:
            unreadable()

    def test(self):
        self.run_evaluator("test")

    train, repeat_evaluations = Trainer.train, Trainer.repeat_evaluations


def test_the_last_evaluation_is_known_to_be_missing(caplog):
    trainer = SimpleNamespace(
        iter=3, max_iter=6, start_iter=0, unevaluated=[], checkpointer=None, storage=EventStorage()
    )
    hook = Evaluation(None, unreadable, 2, prefix="knn/")
    hook.trainer = trainer
    hook.after_step()
    assert str(trainer.unavailable).startswith("cannot read") and trainer.unevaluated == []
    trainer.iter = 5
    hook.after_step()
    assert trainer.unevaluated == ["knn"]
    trainer.done = 6
    with caplog.at_level(logging.ERROR), pytest.raises(SystemExit) as caught:
        save_and_exit(trainer, trainer.unavailable)
    assert caught.value.code == 74
    assert caplog.records[-1].message == (
        "cannot read x.png: Input/output error; ended after 6 iterations, --resume repeats the "
        "last evaluation"
    )


@pytest.mark.parametrize(
    "missing, asked", [([], []), ([""], ["test"]), (["knn", "gone"], ["knn"]), (["gone"], [])]
)
def test_a_resumed_run_repeats_it(caplog, missing, asked):
    trainer = Done(missing)
    with caplog.at_level(logging.INFO):
        trainer.train()
    assert trainer.asked == asked
    said = "the last evaluation was missing: its results" if asked else "nothing to do: 6 of 6"
    assert [record.message.startswith(said) for record in caplog.records] == [True]


def test_the_data_may_still_be_away(caplog):
    with caplog.at_level(logging.ERROR), pytest.raises(SystemExit) as caught:
        Done(["knn"], away=True).train()
    assert caught.value.code == 74
    assert caplog.records[-1].message.endswith("--resume repeats the last evaluation")


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
