"""Evaluations while training, with data and periods of their own."""

from __future__ import annotations

import json
import shutil

import pytest

from libai_ext.errors import ConfigError, DataError
from projects.MAE.evaluation.evaluators import KNN, LinearProbe
from projects.MAE.evaluation.probe import load_run, nearest_neighbours
from projects.MAE.run import resolve

RECIPE = "projects/MAE/configs/mae_digits.py"
EVALS = "train.evaluation.evals"
LAYOUTS = {"dp2": (2, 1, 1), "tp2": (1, 2, 1), "pp2": (1, 1, 2)}


@pytest.fixture(scope="module")
def few(digits, tmp_path_factory):
    """Twelve images of each digit to train on, six to test."""
    folder = tmp_path_factory.mktemp("few")
    for split, count in (("train", 12), ("test", 6)):
        for path in (digits / split).glob("*"):
            (folder / split / path.name).mkdir(parents=True)
            for image in sorted(path.iterdir())[:count]:
                shutil.copy(image, folder / split / path.name)
    return folder


def recipe(folder, evals):
    """A config that adds an evaluator to the recipe's."""
    path = folder / "more.py"
    path.write_text(
        "from libai.config import LazyCall\n"
        "from libai_ext.config.lazy_config import load\n"
        "from projects.MAE.evaluation.evaluators import OtherData\n"
        f"cfg = load({RECIPE!r})\n"
        "data, dataloader, graph, model, optim, task, train = (cfg[key] for key in ("
        "'data', 'dataloader', 'graph', 'model', 'optim', 'task', 'train'))\n"
        f"train.evaluation.evals.mine = {evals}\n"
    )
    return str(path)


class Runs:
    def __init__(self, root, few):
        self.root, self.few = root, few
        roots = [str(few / "test")]
        self.recipe = recipe(root, f"LazyCall(OtherData)(roots={roots}, period=4)")

    def command(self, name, *options, layout=(1, 1, 1)):
        sizes = zip(("data", "tensor", "pipeline"), layout)
        return [
            *("--config-file", self.recipe, *self.data()),
            *("train.train_iter=6", "train.warmup_iter=1"),
            *("train.global_batch_size=8", "train.log_period=2", "train.test_micro_batch_size=7"),
            f"train.output_dir={self.root / name}",
            *(f"train.dist.{axis}_parallel_size={size}" for axis, size in sizes),
            *options,
        ]

    def data(self):
        paths = [f"data.{split}=[{self.few / split}]" for split in ("train", "test")]
        return [*paths, "model.depth=1", "dataloader.test.num_workers=0"]

    def lines(self, name):
        return [json.loads(line) for line in (self.root / name / "metrics.jsonl").open()]

    def series(self, name, metric):
        return {line["iteration"]: line[metric] for line in self.lines(name) if metric in line}


@pytest.fixture(scope="module")
def runs(launch, few, tmp_path_factory):
    runs = Runs(tmp_path_factory.mktemp("runs"), few)
    measured = [
        f"{EVALS}.knn.period=3",
        f"{EVALS}.probe.epoch=0.25",  # 30 images, 4 iterations
        "train.evaluation.eval_metric=knn/top1",
        "train.checkpointer.period=3",
    ]
    commands = {
        1: [
            runs.command("plain"),
            runs.command("measured", *measured),
            runs.command("graph", *measured, "graph.enabled=True"),
        ],
        2: [runs.command(name, *measured, layout=sizes) for name, sizes in LAYOUTS.items()],
    }
    for count, some in commands.items():
        path = runs.root / f"commands-{count}.json"
        path.write_text(json.dumps(some))
        launcher = ("-m", "libai_ext.launch", "--nproc-per-node", count)
        launch.python(*launcher, "tests/multiprocess/many_runs.py", path, timeout=600)
    return runs


def test_each_evaluation_has_its_period(runs):
    assert list(runs.series("measured", "knn/top1")) == [3, 6]
    assert list(runs.series("measured", "probe/top1")) == [4, 6]
    assert list(runs.series("measured", "mine/loss")) == [4, 6]
    assert all(0 <= value <= 100 for value in runs.series("measured", "knn/top1").values())


def test_the_curve_is_that_of_a_run_without(runs):
    assert runs.series("measured", "total_loss")[6] == pytest.approx(
        runs.series("plain", "total_loss")[6], rel=1e-6
    )
    weights = [runs.root / name / "model_final/model" for name in ("plain", "measured")]
    files = sorted(path.relative_to(weights[0]) for path in weights[0].rglob("out"))
    assert files
    for file in files:
        assert (weights[0] / file).read_bytes() == (weights[1] / file).read_bytes(), file


@pytest.mark.parametrize("name", ["graph", *LAYOUTS])
def test_every_layout_measures_the_same(runs, name):
    for metric in ("knn/top1", "probe/top1"):
        assert runs.series(name, metric) == pytest.approx(runs.series("measured", metric))


def test_it_is_what_the_tool_finds(runs):
    run = load_run(runs.recipe, [*runs.data(), f"train.output_dir={runs.root / 'measured'}"])
    expected = nearest_neighbours(run, [20])[20]
    assert runs.series("measured", "knn/top1")[6] == pytest.approx(expected)


def test_the_best_checkpoint_is_by_any_of_them(runs):
    values = runs.series("measured", "knn/top1")
    best = json.loads((runs.root / "measured/model_best/progress.json").read_text())["best"]
    assert best["metric"] == "knn/top1" and best["value"] == max(values.values())
    assert values[best["iteration"] + 1] == best["value"]


@pytest.mark.parametrize(
    "options, message",
    [
        (["train.evaluation.eval_metric=knn/top1"], "'knn/top1' is not one of the results: loss"),
        ([f"{EVALS}.knn.period=0"], "evals.knn.period must be a whole number"),
        ([f"{EVALS}.knn.epoch=-1"], "evals.knn.epoch must be"),
        ([f"{EVALS}.knn.neighbors=3"], "knn.neighbors.*neighbours"),
    ],
)
def test_mistakes_are_named(few, options, message):
    with pytest.raises(ConfigError, match=message):
        resolve(RECIPE, [f"data.train=[{few}/train]", *options])


@pytest.mark.parametrize(
    "evals, message",
    [
        ("dict(period=3)", "evals.mine must be a group of keys with a _target_"),
        ("LazyCall(OtherData)(roots=['x'], period='often')", "evals.mine.period must be a whole"),
        ("LazyCall(OtherData)(root=['x'], period=3)", "mine.root'.*roots"),
    ],
)
def test_a_recipe_may_be_wrong(few, tmp_path, evals, message):
    with pytest.raises(ConfigError, match=message):
        resolve(recipe(tmp_path, evals), [f"data.train=[{few}/train]"])


class Trainer:
    """What an evaluator asks of a trainer before the first step."""

    def __init__(self, cfg):
        self.cfg = cfg


def test_data_are_judged_before_the_first_step(few, tmp_path):
    cfg = resolve(RECIPE, [f"data.train=[{few}/train]", "data.test=null"])
    with pytest.raises(ConfigError, match="data.test is unset: its labels"):
        KNN(period=3).open(Trainer(cfg))
    cfg.data.test = [str(few / "test")]
    with pytest.raises(DataError, match="gone"):
        LinearProbe(period=3, train=[str(tmp_path / "gone")]).open(Trainer(cfg))
