"""Any parallel layout, the same curve: every layout, mode and accumulation, for each task."""

from __future__ import annotations

import json
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
            "model.depth=2",
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
            "model.depth=3",
            "model.drop_path=0.3",
            "model.head_std=0.02",
            "finetune.enable=False",
        ),
        ("loss", "acc1"),
    ),
}
# A recipe with its optimizer replaced.
SGD = """
import oneflow as flow
from libai.config import LazyCall
from libai_ext.config import load

globals().update(load("{config}"))
optim = LazyCall(flow.optim.SGD)(params=optim.params, lr=0.1)
"""


class Case(NamedTuple):
    layout: str
    mode: str
    optimizer: str
    accumulation: int


def _cases(layout: str) -> list[Case]:
    """Compiling graphs takes most of the time: there, each accumulation has one optimizer."""
    graphs = [Case(layout, "graph", "sgd", 1), Case(layout, "graph", "adamw", 2)]
    eager = [Case(layout, "eager", *rest) for rest in product(("sgd", "adamw"), (1, 2))]
    return graphs + eager


CASES = [case for layout in LAYOUTS for case in _cases(layout)]


class Table:
    """Runs of one task, each in a folder of its own."""

    def __init__(self, task: Task, launch, digits, folder):
        self.task, self.launch, self.root = task, launch, folder
        self.data = [f"data.train=[{digits}/train]", f"data.test=[{digits}/test]"]
        self.failed: dict[int, str] = {}
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
    """The whole table of one task."""
    folder = tmp_path_factory.mktemp(request.param)
    table = Table(TASKS[request.param], launch, digits, folder)
    table.run(
        {name: [table.command(c, table.folder(*c)) for c in _cases(name)] for name in LAYOUTS}
    )
    return table


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
