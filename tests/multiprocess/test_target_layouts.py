"""Targets that are no pixels: the same curve on any layout."""

from __future__ import annotations

import json

import pytest
from made_runs import DECODER, SIZES, autoencoder, make_run, randomise

LAYOUTS = {"one": (1, 1, 1), "dp2": (2, 1, 1), "tp2": (1, 2, 1), "pp2": (1, 1, 2)}
STEPS = 5
RECIPES = {"mae_hog": "Hog", "mae_distill": "TeacherFeatures"}
# HOG is computed of whole images; of the teacher, attention is split as well.
CASES = [("mae_hog", "dp2"), ("mae_hog", "pp2"), ("mae_distill", "tp2"), ("mae_distill", "pp2")]
GREY = dict(mode="L", mean=[0.5], std=[0.5])
TEACHER = dict(img_size=(32, 32), in_chans=1, depth=3)


class Runs:
    """Runs of both recipes on the digits."""

    def __init__(self, launch, digits, folder):
        self.launch, self.folder, self.digits = launch, folder, digits
        sizes = {**SIZES, **DECODER, **TEACHER}
        self.teacher = make_run(folder / "teacher", randomise(autoencoder(**TEACHER)), sizes, GREY)

    def command(self, recipe, layout):
        data, tensor, pipeline = LAYOUTS[layout]
        own = {"mae_hog": "cell=4", "mae_distill": f"weights={self.teacher}"}[recipe]
        return [
            *("--config-file", recipe, f"model.target.{own}", "model.arch=mae_vit_digits"),
            *("model.in_chans=1", "data.mode=L", "data.mean=[0.5]", "data.std=[0.5]"),
            *("model.depth=1", f"data.train=[{self.digits}/train]"),
            *(f"train.global_batch_size=8 train.train_iter={STEPS} train.warmup_iter=1".split()),
            *("train.log_period=1", "dataloader.train.num_workers=0"),
            f"graph.enabled={layout != 'tp2'}",
            f"train.activation_checkpoint.enabled={layout == 'dp2'}",
            f"train.output_dir={self.folder}/{recipe}-{layout}",
            f"train.dist.data_parallel_size={data}",
            f"train.dist.tensor_parallel_size={tensor}",
            f"train.dist.pipeline_parallel_size={pipeline}",
        ]

    def run(self, processes, commands):
        path = self.folder / "commands.json"
        path.write_text(json.dumps(commands))
        script = "tests/multiprocess/many_runs.py"
        self.launch.python("-m", "libai_ext.launch", "--nproc-per-node", processes, script, path)

    def curve(self, name):
        lines = (self.folder / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["total_loss"] for line in lines]


@pytest.fixture(scope="module")
def runs(launch, digits, tmp_path_factory):
    runs = Runs(launch, digits, tmp_path_factory.mktemp("targets"))
    runs.run(1, [runs.command(recipe, "one") for recipe in RECIPES])
    runs.run(2, [runs.command(*case) for case in CASES])
    return runs


@pytest.mark.slow
@pytest.mark.parametrize("recipe, layout", CASES)
def test_same_curve(runs, recipe, layout):
    expected = runs.curve(f"{recipe}-one")
    assert len(set(expected)) == STEPS  # each step has changed the model
    assert runs.curve(f"{recipe}-{layout}") == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", list(RECIPES))
def test_no_pictures(runs, recipe):
    log = (runs.folder / f"{recipe}-one/log.txt").read_text()
    assert log.count(f"no pictures are drawn: {RECIPES[recipe]} cannot be shown as pixels") == 1
