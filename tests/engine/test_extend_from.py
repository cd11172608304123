"""A run that continues another one under a longer schedule."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from libai_ext.engine import trainer
from libai_ext.engine.nonfinite import NonFiniteMonitor
from libai_ext.engine.steps import EagerSteps
from libai_ext.errors import ConfigError
from projects.MAE.run import resolve

RECIPE = "projects/MAE/configs/mae_digits.py"
# The cosine falls from the rate to the rate: it is the same however long the run is.
CONSTANT = ["optim.lr=1e-3", "train.scheduler.min_lr=1e-3", "train.warmup_iter=0"]


class Runs:
    def __init__(self, root, digits):
        self.root, self.digits = root, digits

    def command(self, name, iterations, *options):
        return [
            *("--config-file", RECIPE, "model.depth=1", "train.global_batch_size=16"),
            f"data.train=[{self.digits}/test]",
            *(f"train.train_iter={iterations}", "train.log_period=1", "train.warmup_iter=2"),
            f"train.output_dir={self.root / name}",
            *options,
        ]

    def lines(self, name):
        lines = [json.loads(line) for line in (self.root / name / "metrics.jsonl").open()]
        return {line["iteration"]: (line["total_loss"], line["lr"]) for line in lines}

    def weights(self, name):
        folder = self.root / name / "model_final/model"
        return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("out")}


@pytest.fixture(scope="module")
def runs(launch, digits, tmp_path_factory):
    runs = Runs(tmp_path_factory.mktemp("runs"), digits)
    commands = []
    for mode in ("graph", "eager"):
        own = [f"graph.enabled={mode == 'graph'}"]
        first = f"train.extend_from={runs.root}/{mode}-first"
        commands += [
            runs.command(f"{mode}-first", 4, *CONSTANT, *own),
            runs.command(f"{mode}-whole", 7, *CONSTANT, *own),
            runs.command(f"{mode}-longer", 7, *CONSTANT, first, *own),
            runs.command(f"{mode}-falling", 7, "optim.lr=2e-3", first, *own),
        ]
    checkpoint = runs.root / "graph-first/model_final"
    commands.append(
        runs.command(
            "from-checkpoint", 7, *CONSTANT, f"train.extend_from={checkpoint}",
            "train.checkpointer.epoch=0.03",
        )
    )  # fmt: skip
    path = runs.root / "commands.json"
    path.write_text(json.dumps(commands))
    launcher = ("-m", "libai_ext.launch", "--nproc-per-node", 1)
    launch.python(*launcher, "tests/multiprocess/many_runs.py", path, timeout=600)
    return runs


@pytest.mark.parametrize("mode", ["graph", "eager"])
def test_it_is_the_run_that_was_longer_from_the_start(runs, mode):
    whole = runs.lines(f"{mode}-whole")
    assert runs.lines(f"{mode}-longer") == {number: whole[number] for number in (5, 6, 7)}
    assert runs.weights(f"{mode}-longer") == runs.weights(f"{mode}-whole")


@pytest.mark.parametrize("mode", ["graph", "eager"])
def test_the_new_schedule_counts(runs, mode):
    """Iterations 4, 5 and 6, from 0, of a warm-up over 2 and a cosine to 7."""
    rates = [rate for _, rate in runs.lines(f"{mode}-falling").values()]
    assert rates == pytest.approx([1.309017e-3, 6.90983e-4, 1.909830e-4], rel=1e-5)
    assert runs.weights(f"{mode}-falling") != runs.weights(f"{mode}-longer")


def test_a_checkpoint_may_be_named_and_saves_may_be_by_epoch(runs):
    assert runs.weights("from-checkpoint") == runs.weights("graph-whole")
    # 599 images, batches of 16: 0.03 epochs end in the second iteration.
    saved = sorted(path.name for path in (runs.root / "from-checkpoint").glob("model_0*"))
    assert saved == ["model_0000005"]


def test_the_log_says_what_is_other(runs):
    log = (runs.root / "graph-falling/log.txt").read_text()
    assert f"extends {runs.root}/graph-first/model_final, from iteration 4 to 7" in log
    assert "optim.lr: 0.001 in the checkpoint, 0.002 in the config" in log


@pytest.mark.parametrize(
    "iterations, option, message",
    [
        (4, "train.seed=0", "has 4 iterations, this run 4: set train.train_epoch or"),
        (7, "train.global_batch_size=8", "train.global_batch_size: 16 in the checkpoint, 8 in"),
        (7, "optim.params.weight_decay=0.1", "optim.params.weight_decay: 0.05 in the checkpoint"),
    ],
)
def test_what_may_not_be_other(runs, launch, tmp_path, iterations, option, message):
    first = f"train.extend_from={runs.root}/eager-first"
    command = runs.command("refused", iterations, first, "graph.enabled=False", option, "--dry-run")
    out = launch.python("projects/MAE/train_net.py", *command, status=2)
    assert message in out


def test_one_start_is_enough(digits, tmp_path):
    both = [f"train.extend_from={tmp_path}", f"train.load_weight={tmp_path}"]
    with pytest.raises(ConfigError, match="train.extend_from or train.load_weight, not both"):
        resolve(RECIPE, [f"data.train=[{digits}/test]", *both])


def test_steps_that_the_first_run_left_out_are_not_counted(monkeypatch):
    monkeypatch.setattr(trainer, "latest_checkpoint", lambda run: f"{run}/model_final")
    monkeypatch.setattr(trainer, "refuse_nonfinite", lambda model, path: None)
    monkeypatch.setattr(trainer, "set_schedule", lambda scheduler, step: None)
    checkpointer = SimpleNamespace(
        progress=lambda path: {"iteration": 3, "steps": {"faults": 2}},
        steps_taken=lambda path: 2,
        load=lambda path, names: None,
        checkpointables={},
        plain={"settings": {}},
    )
    run = SimpleNamespace(checkpointer=checkpointer, max_iter=7, model=None, lr_scheduler=None)
    run.steps = EagerSteps(run, NonFiniteMonitor(run, 0))
    trainer.Trainer.extend(run, "first")
    assert (run.start_iter, run.steps.taken, run.steps.monitor.faults) == (4, 2, 0)
