"""Evaluations while training, with data and periods of their own."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from libai.config import LazyCall
from omegaconf import OmegaConf

from libai_ext.config.targets import check_arguments
from libai_ext.data.loader import Loader
from libai_ext.data.mixup import Mixer
from libai_ext.data.sampler import EvalSampler
from libai_ext.errors import ConfigError, DataError
from projects.MAE.evaluation.evaluators import KNN, LinearProbe
from projects.MAE.evaluation.probe import load_run, nearest_neighbours, neighbours_accuracy
from projects.MAE.run import resolve

RECIPE = "projects/MAE/configs/mae_digits.py"
EVALS = "train.evaluation.evals"
LAYOUTS = {"dp2": (2, 1, 1), "tp2": (1, 2, 1), "pp2": (1, 1, 2)}


def test_neighbours_are_those_by_cosine_and_vote_with_it():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 8))
    labels, expected = rng.integers(0, 3, 200), rng.integers(0, 3, 100)
    # Lengths differ, so that the nearest by distance are others.
    train, test = (
        ((centres[of] + rng.normal(size=(len(of), 8))) * rng.uniform(0.1, 10, (len(of), 1))).astype(
            np.float32
        )
        for of in (labels, expected)
    )
    unit_train, unit_test = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test))
    cosine = unit_test @ unit_train.T
    right = 0
    for row, label in zip(cosine, expected):
        nearest = np.argsort(-row)[:7]
        right += np.bincount(labels[nearest], row[nearest].clip(1e-6)).argmax() == label
    assert 50 < right < 100
    accuracy = neighbours_accuracy((train, labels), (test, expected), [7])
    assert accuracy == {7: pytest.approx(right)}


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

    def eval_loader(self, dataset):
        sampler = EvalSampler(len(dataset), 7, 0, 1)
        return Loader(dataset, sampler, num_workers=0)


def opened(evaluator, few, train):
    cfg = resolve(RECIPE, [f"data.train={train}", f"data.test=[{few}/test]"])
    evaluator.open(Trainer(cfg))
    return evaluator


@pytest.mark.parametrize("neighbours", [0, -1, 5.5, True, None, "5"])
def test_neighbours_are_counted_before_the_first_step(few, neighbours):
    with pytest.raises(ConfigError, match=f"neighbours must be a whole .*, not {neighbours!r}"):
        opened(KNN(neighbours=neighbours), few, f"[{few}/train]")


def test_what_cannot_be_fitted_is_said_before_the_first_step(few, tmp_path):
    assert opened(KNN(neighbours=120), few, f"[{few}/train]").neighbours == 120
    with pytest.raises(DataError, match="121 neighbours among 120 labelled samples"):
        opened(KNN(neighbours=121), few, f"[{few}/train]")
    for iterations in (0, 1.5):
        with pytest.raises(ConfigError, match=f"iterations must be a .*, not {iterations}"):
            opened(LinearProbe(iterations=iterations), few, f"[{few}/train]")
    for split in ("train", "test"):
        shutil.copytree(few / split / "3", tmp_path / split / "3")
    for evaluator in (KNN(neighbours=1), LinearProbe()):
        with pytest.raises(DataError, match="the 12 labelled samples of data.train are of one"):
            opened(evaluator, tmp_path, f"[{tmp_path}/train]")


def test_only_labelled_samples_are_read(few, tmp_path):
    """The others could not be compared: STL-10 has 5,000 labels for 105,000 images."""
    for number, path in enumerate(sorted((few / "test").rglob("*.png"))):
        shutil.copy(path, tmp_path / f"{number}.png")
    found = opened(KNN(neighbours=1), few, f"[{tmp_path},{few}/train]").train
    assert sum(found.batch_sampler.valid(batch) for batch in range(len(found.batch_sampler))) == 120
    plain = opened(KNN(neighbours=1), few, f"[{few}/train]").train
    for mine, theirs in zip(found, plain):
        mine, theirs = ({name: value.tensor.numpy() for name, value in batch.get_fields().items()}
                        for batch in (mine, theirs))  # fmt: skip
        np.testing.assert_array_equal(mine["images"], theirs["images"])


@pytest.mark.parametrize("target", [KNN, LinearProbe, Mixer])
def test_every_argument_is_known_before_it_is_called(target):
    """None of ``**keywords``, for which a wrong key would be as good as any."""
    cfg = OmegaConf.create({"it": LazyCall(target)(neighbors=5, prob=0.5)})
    with pytest.raises(ConfigError, match="unknown config key 'it.neighbors'"):
        check_arguments(cfg)


def test_data_are_judged_before_the_first_step(few, tmp_path):
    cfg = resolve(RECIPE, [f"data.train=[{few}/train]", "data.test=null"])
    with pytest.raises(ConfigError, match="data.test is unset: its labels"):
        KNN(period=3).open(Trainer(cfg))
    cfg.data.test = [str(few / "test")]
    with pytest.raises(DataError, match="gone"):
        LinearProbe(period=3, train=[str(tmp_path / "gone")]).open(Trainer(cfg))
