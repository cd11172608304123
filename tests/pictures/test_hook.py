"""When pictures are drawn, and when they cannot be."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import pytest

from libai_ext.config.lazy_config import get_config
from libai_ext.engine import unavailable_data
from libai_ext.engine.run_metrics import Means
from libai_ext.errors import DataUnavailable
from projects.MAE.pictures import hook
from projects.MAE.run import TaskTrainer


class Unreadable:
    def __getitem__(self, key):
        raise DataUnavailable("cannot read x.png: Input/output error")


@pytest.mark.parametrize(
    "dataset, reason",
    [
        (Unreadable(), "cannot read x.png: Input/output error"),
        ({0: {"images": np.zeros(4)}}, "another rank cannot read its data"),
    ],
)
def test_a_rank_without_its_samples_stops_all(monkeypatch, caplog, dataset, reason):
    """One of two ranks, whichever it is, knows that the other one cannot draw."""
    monkeypatch.setattr(unavailable_data.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(unavailable_data, "_on_any_rank", lambda answer: True)
    monkeypatch.setattr(hook, "data_parallel_rank", lambda: 0)
    layout = SimpleNamespace(data_parallel_size=1)
    trainer = SimpleNamespace(
        iter=3,
        max_iter=9,
        cfg=SimpleNamespace(train=SimpleNamespace(dist=layout)),
        global_batch_size=4,
        order=SimpleNamespace(batch=lambda iteration: [0, 1, 2, 3]),
        dataset=dataset,
        unavailable=None,
        get_batch=None,
    )
    pictures = hook.PictureHook(2, samples=1)
    pictures.trainer = trainer
    with caplog.at_level(logging.ERROR):
        pictures.after_step()
    assert str(trainer.unavailable) == reason
    said = [record.message for record in caplog.records]
    assert said == [f"the picture after 4 iterations is skipped: {reason}"]


def test_the_time_of_a_picture_is_not_that_of_a_step():
    trainer = TaskTrainer.__new__(TaskTrainer)
    trainer.cfg = SimpleNamespace(train=get_config("common/train.py").train)
    trainer.task = SimpleNamespace(hooks=lambda cfg: [hook.PictureHook(2, samples=1)])
    trainer.evaluators, trainer.keeps = {}, False
    trainer.means, trainer.global_batch_size = Means(), 4
    names = [type(one).__name__ for one in trainer.build_hooks()]
    assert names[:4] == ["StepWatch", "IterationTimer", "PictureHook", "Schedule"]
    assert names.count("PictureHook") == 1 and names[-1] == "Progress"
