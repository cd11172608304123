"""Any parallel layout, the same curve: every layout, mode and accumulation, for each task."""

from __future__ import annotations

import json
import re
import shutil
from itertools import product
from typing import NamedTuple

import numpy as np
import pytest

from libai_ext.checkpoint import oneflow_folder

# (data, tensor, pipeline)
LAYOUTS = {
    "one": (1, 1, 1),
    "dp2": (2, 1, 1),
    "tp2": (1, 2, 1),
    "pp2": (1, 1, 2),
    "dp2tp2": (2, 2, 1),
    "dp2pp2": (2, 1, 2),
    "tp2pp2": (1, 2, 2),
    "dp2tp2pp2": (2, 2, 2),
}
SAVED_AND_RESUMED = ("one", "dp2", "tp2", "pp2", "dp2tp2")
ITERATIONS, SAVED_AT = 5, 3
TOLERANCE = {"sgd": 1e-5, "adamw": 1e-4}


class Task(NamedTuple):
    """What the table is filled for: a recipe and the options that make it small."""

    config: str
    options: tuple[str, ...]
    # Results of an evaluation, as the log names them.
    results: tuple[str, ...]


_SMALL = (
    "model.embed_dim=16",
    "model.num_heads=2",
    "train.global_batch_size=16",
    f"train.train_iter={ITERATIONS}",
    "train.warmup_iter=1",
    "train.log_period=1",
    "train.evaluation.enabled=False",
    f"train.checkpointer.period={SAVED_AT}",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
)
TASKS = {
    "pretraining": Task(
        "projects/MAE/configs/mae_digits.py",
        (
            *_SMALL,
            "model.depth=1",
            "model.decoder_depth=1",
            "model.decoder_embed_dim=16",
            "model.decoder_num_heads=2",
        ),
        ("loss",),
    ),
    "finetuning": Task(
        "projects/MAE/configs/mae_digits_finetune.py",
        (
            *_SMALL,
            "model.depth=2",
            "model.drop_path=0.3",
            "model.head_std=0.02",
            "finetune.enable=False",
        ),
        ("top1", "top5", "loss"),
    ),
}
# A recipe with its optimizer replaced.
SGD = """
import oneflow as flow
from libai.config import LazyCall
from libai_ext.config.lazy_config import load

globals().update(load("{config}"))
optim = LazyCall(flow.optim.SGD)(params=optim.params, lr=0.1)
"""


class Case(NamedTuple):
    layout: str
    mode: str
    optimizer: str
    accumulation: int


def _cases(layout: str) -> list[Case]:
    """Compiling graphs takes most of the time: each accumulation has one optimizer, and pipelines
    beside another axis have one case a mode."""
    _, *cases, _ = all_cases = [
        Case(layout, mode, *rest)
        for mode, rest in product(("graph", "eager"), (("sgd", 1), ("adamw", 2)))
    ]
    return cases if layout.endswith("pp2") and layout != "pp2" else all_cases


CASES = [case for layout in LAYOUTS for case in _cases(layout)]
# Graphs once around, eager mode under each other layout.
RESUMED = [
    (source, target, mode)
    for (i, source), (k, target) in product(enumerate(SAVED_AND_RESUMED), repeat=2)
    for mode in ("graph", "eager")
    if (source != target if mode == "eager" else k == (i + 1) % len(SAVED_AND_RESUMED))
]
# How each task is evaluated.
EVALUATED_IN = {"pretraining": "eager", "finetuning": "graph"}


class Table:
    """Runs of one task, each in a folder of its own."""

    def __init__(self, task: Task, launch, digits, folder):
        self.task, self.launch, self.root = task, launch, folder
        self.data = [f"data.train=[{digits}/train]", f"data.test=[{digits}/test]"]
        (folder / "sgd.py").write_text(SGD.format(config=task.config))

    def folder(self, *parts):
        return self.root / "-".join(str(part) for part in parts)

    def command(self, case: Case, folder, *options) -> list[str]:
        config = self.root / "sgd.py" if case.optimizer == "sgd" else self.task.config
        data, tensor, pipeline = LAYOUTS[case.layout]
        return [
            "--config-file",
            str(config),
            *self.data,
            *self.task.options,
            f"train.output_dir={folder}",
            f"graph.enabled={case.mode == 'graph'}",
            f"train.num_accumulation_steps={case.accumulation}",
            f"train.dist.data_parallel_size={data}",
            f"train.dist.tensor_parallel_size={tensor}",
            f"train.dist.pipeline_parallel_size={pipeline}",
            *options,
        ]

    def run(self, commands: dict[str, list[list[str]]]) -> None:
        """Run the commands of each layout, with one launch for each number of processes."""
        for count in sorted({int(np.prod(LAYOUTS[layout])) for layout in commands}):
            chosen = [c for name, c in commands.items() if np.prod(LAYOUTS[name]) == count]
            path = self.root / f"commands-{count}.json"
            path.write_text(json.dumps(sum(chosen, [])))
            script = "tests/multiprocess/many_runs.py"
            self.launch.python(
                "-m", "libai_ext.launch", "--nproc-per-node", count, script, path, timeout=600
            )


@pytest.fixture(scope="module", params=list(TASKS))
def table(request, launch, digits, tmp_path_factory):
    """All runs of one task: from scratch, evaluated, resumed from each other's checkpoints."""
    folder = tmp_path_factory.mktemp(request.param)
    table = Table(TASKS[request.param], launch, digits, folder)
    commands = {
        name: [table.command(c, table.folder(*c)) for c in _cases(name)] for name in LAYOUTS
    }
    # One process comes first, so that its weights are there for all.
    for name in LAYOUTS:
        commands[name].append(evaluation(table, name, EVALUATED_IN[request.param]))
    table.run(commands)
    if request.param == "pretraining":
        later = {name: [] for name in SAVED_AND_RESUMED}
        for source, target, mode in RESUMED:
            later[target].append(resumption(table, source, target, mode))
        table.run(later)
    return table


def resumption(table, source, target, mode):
    """Command that goes on from the checkpoint in the middle of a run of another layout."""
    folder = table.folder(source, "to", target, mode)
    shutil.copytree(table.folder(source, mode, "adamw", 2), folder)
    shutil.rmtree(folder / "model_final")
    (folder / "last_checkpoint").write_text(f"model_{SAVED_AT - 1:07d}")
    return table.command(Case(target, mode, "adamw", 2), folder, "--resume")


def evaluation(table, layout, mode):
    """Command that evaluates what the one process has trained."""
    folder = table.folder("evaluated", layout)
    folder.mkdir()
    weights = table.folder("one", "graph", "adamw", 2) / "model_final" / "model"
    return table.command(
        Case(layout, mode, "adamw", 1), folder, "--eval-only", f"train.load_weight={weights}"
    )


def curve(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["iteration"]: line["total_loss"] for line in lines}


def parameters(folder):
    """Final parameters, without the key third of the qkv bias: its gradient is zero by
    mathematics, and AdamW makes noise of any size out of zeros."""
    arrays = oneflow_folder.load(folder / "model_final")
    for name in arrays:
        if name.endswith("query_key_value.bias"):
            arrays[name] = arrays[name].reshape(2, 3, -1)[:, [0, 2]]
    return arrays


def assert_same(folder, reference, optimizer):
    assert curve(folder) == pytest.approx(curve(reference), rel=1e-5)
    assert list(curve(folder)) == list(range(1, ITERATIONS + 1))
    found, expected = parameters(folder), parameters(reference)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        tolerance = TOLERANCE[optimizer]
        np.testing.assert_allclose(found[name], array, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_same_curve_and_weights(table, case):
    reference = table.folder("one", "graph", case.optimizer, 1 if case.optimizer == "sgd" else 2)
    assert_same(table.folder(*case), reference, case.optimizer)


@pytest.mark.slow
@pytest.mark.parametrize("source, target, mode", RESUMED)
@pytest.mark.parametrize("table", ["pretraining"], indirect=True)
def test_resume_under_another_layout(table, source, target, mode):
    """The curve and the weights go on as if nothing had happened."""
    folder = table.folder(source, "to", target, mode)
    assert_same(folder, table.folder("one", mode, "adamw", 2), "adamw")


@pytest.mark.slow
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_same_evaluation(table, layout):
    found, expected = (results(table.folder("evaluated", name)) for name in (layout, "one"))
    assert list(found) == list(table.task.results)
    assert found == pytest.approx(expected, rel=1e-5)


def results(folder):
    """What the log says of the evaluation."""
    line = re.search(r"evaluation on 599 samples: (.*)", (folder / "log.txt").read_text())[1]
    pairs = (part.rsplit(" ", 1) for part in line.split(", "))
    return {name: float(value) for name, value in pairs}
