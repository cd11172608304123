"""When checkpoints are made, and what happens when they cannot be."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
from libai.utils.events import EventStorage

from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.engine.checkpointing import Checkpointing, Evaluation


class Recorder:
    """Notes what a checkpointer is asked; fails at the given iterations."""

    def __init__(self, failing=()):
        self.saved = []
        self.plain = {}
        self.failing = failing
        self.failure = None

    def save(self, name, iteration, is_latest=True, **plain):
        self.saved.append((name, iteration, is_latest))
        self.failure = "the disk is full" if iteration in self.failing else None
        if self.failure is None:
            self.plain.update(plain)

    def finish(self):
        if self.failure:
            raise CheckpointError(self.failure)

    def join(self):
        pass


def run(hook, iterations, results=None):
    """The hook's part in a run from iteration 0 on; ``results`` by iteration."""
    hook.trainer = SimpleNamespace(max_iter=iterations, storage=EventStorage())
    for iteration in range(iterations):
        hook.trainer.iter = iteration
        hook.trainer.storage.iter = iteration + 1
        hook.measure = lambda: dict(accuracy=results[hook.trainer.iter], other=0.0)
        hook.after_step()


def test_period_and_end():
    checkpointer = Recorder()
    run(Checkpointing(checkpointer, 3, 1), 9)
    assert checkpointer.saved == [
        ("model_0000002", 2, True),
        ("model_0000005", 5, True),
        ("model_final", 8, True),
    ]


def test_a_failure_is_repeated_until_a_save_works(caplog):
    with caplog.at_level(logging.ERROR):
        run(Checkpointing(Recorder(failing=[3]), 4, 1), 12)
    assert [record.message for record in caplog.records] == [
        "the disk is full; training continues"
    ] * 3


def test_without_its_end_a_run_has_failed():
    with pytest.raises(CheckpointError, match="the disk is full"):
        run(Checkpointing(Recorder(failing=[8]), 3, 1), 9)


@pytest.mark.parametrize(
    ("mode", "values", "kept"),
    [
        ("max", [1, 3, 2, 3, 4], [0, 1, 4]),
        ("min", [3, 1, 2, 1, 0], [0, 1, 4]),
        ("max", [float("nan"), 1, float("inf"), 2, 0], [1, 3]),
    ],
)
def test_best(mode, values, kept):
    checkpointer = Recorder()
    run(Evaluation(checkpointer, None, 1, "accuracy", mode), 5, dict(enumerate(values)))
    assert checkpointer.saved == [("model_best", iteration, False) for iteration in kept]
    assert checkpointer.plain["best"] == {
        "metric": "accuracy",
        "value": values[kept[-1]],
        "iteration": kept[-1],
    }


def test_a_resumed_run_knows_the_best():
    checkpointer = Recorder()
    checkpointer.plain["best"] = {"metric": "accuracy", "value": 5.0, "iteration": 1}
    run(Evaluation(checkpointer, None, 1, "accuracy", "max"), 2, {0: 4.0, 1: 6.0})
    assert checkpointer.saved == [("model_best", 1, False)]


def test_the_best_of_another_metric_is_none():
    checkpointer = Recorder()
    checkpointer.plain["best"] = {"metric": "top1", "value": 90.0, "iteration": 1}
    run(Evaluation(checkpointer, None, 1, "accuracy", "max"), 2, {0: 0.4, 1: 0.3})
    assert checkpointer.saved == [("model_best", 0, False)]


def test_a_best_one_that_could_not_be_written_does_not_count():
    checkpointer = Recorder(failing=[1])
    run(Evaluation(checkpointer, None, 1, "accuracy", "max"), 4, {0: 1.0, 1: 5.0, 2: 4.0, 3: 3.0})
    assert [iteration for _, iteration, _ in checkpointer.saved] == [0, 1, 2]
    assert checkpointer.plain["best"]["value"] == 4.0


def test_each_period_and_the_end_are_evaluated():
    hook = Evaluation(Recorder(), None, 2)
    run(hook, 5, {1: 0.1, 3: 0.3, 4: 0.4})
    values = hook.trainer.storage.history("accuracy").values()
    assert values == [(0.1, 2), (0.3, 4), (0.4, 5)]
    assert hook.checkpointer.saved == []
