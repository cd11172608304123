"""Mistakes show before the first step, however the program is called; what a trial does.

In process, by the function that the program runs.
"""

from __future__ import annotations

import argparse
import logging
import re
import shutil

import numpy as np
import pytest
from made_runs import make_run, randomise, weights_of
from PIL import Image

import libai_ext.engine.setup
from libai_ext.errors import UserError
from projects.MAE.evaluation.probe import load_run, nearest_neighbours
from projects.MAE.modeling.mae import MaskedAutoencoder
from projects.MAE.modeling.vit import ViTClassifier
from projects.MAE.run import TaskTrainer, run
from projects.MAE.weights.files import write_fb, write_oneflow
from projects.MAE.weights.packing import Heads
from projects.MAE.weights.record import Record

PRETRAIN = "projects/MAE/configs/mae_digits.py"
FINETUNE = "projects/MAE/configs/mae_digits_finetune.py"
EVALUATE, PERIOD = "train.evaluation.enabled=True", "train.evaluation.eval_period=3"
SMALL = [
    "train.global_batch_size=8",
    "train.train_iter=6",
    "train.warmup_iter=1",
    "train.test_micro_batch_size=4",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
    "graph.enabled=False",
]
SIZES = dict(img_size=(32, 32), patch_size=16, in_chans=1, embed_dim=8, depth=1, num_heads=2)
DECODER = dict(decoder_embed_dim=8, decoder_depth=1, decoder_num_heads=2)
GREY = dict(mode="L", mean=[0.5], std=[0.5])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Data of two classes, and weights of a small model, sound and otherwise."""
    root = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    for place in ("train/a", "train/b", "test/a", "test/b", "other/a", "other/c"):
        (root / place).mkdir(parents=True)
        for number in range(10):
            pixels = rng.integers(256, size=(32, 32), dtype=np.uint8)
            Image.fromarray(pixels).save(root / place / f"{number}.png")
    (root / "list.txt").write_text("absent.png a\n")
    model = randomise(MaskedAutoencoder(**SIZES, **DECODER))
    make_run(root / "run", model, {**SIZES, **DECODER, "mask_ratio": 0.75}, GREY)
    weights = weights_of(model)
    weights["blocks.0.mlp.dense_h_to_4h.bias"][3] = np.nan
    known = Record(dict(SIZES, **DECODER), GREY, None, "a test")
    write_oneflow(weights, str(root / "nan"), known)
    weights["blocks.0.mlp.dense_h_to_4h.bias"][3] = np.inf
    write_fb(weights, str(root / "inf.pth"), Heads(2, 2), known)
    (root / "cut.pth").write_bytes((root / "inf.pth").read_bytes()[:3000])
    head = dict(num_classes=2, pooling="mean")
    model = randomise(ViTClassifier(**SIZES, **head))
    make_run(root / "classes", model, {**SIZES, **head}, GREY, classes=["a", "b"])
    (root / "file").touch()
    return root


@pytest.fixture
def start(made, tmp_path, monkeypatch, caplog):
    """``start(config, option, *overrides)`` runs the program; the log files are left out."""
    monkeypatch.setattr(libai_ext.engine.setup, "set_up_logs", lambda folder: None)
    caplog.set_level(logging.INFO)

    def call(config, option, *overrides):
        modes = ("resume", "start_over", "fast_dev_run", "dry_run", "eval_only", "print_config")
        given = {mode: f"--{mode.replace('_', '-')}" in option.split() for mode in modes}
        data = [f"data.{split}=[{made}/{split}]" for split in ("train", "test")]
        classes = ["model.num_classes=2"] if config == FINETUNE else []
        overrides = [text.format(made=made) for text in overrides]
        opts = [*data, *classes, *SMALL, f"train.output_dir={tmp_path}/out", *overrides]
        run(argparse.Namespace(config_file=config, opts=opts, **given))
        return caplog.text

    return call


KNN = "train.evaluation.evals.knn"
SCRATCH = "finetune.enable=False"
MISTAKES = [
    (PRETRAIN, [EVALUATE, "data.test=[/nowhere]"], "data folder /nowhere does not exist"),
    (PRETRAIN, [EVALUATE, "data.test=null"], "data.test is unset: set it to a list of folders, or"),
    (FINETUNE, [SCRATCH, "data.test=[{made}/other]"], r"classes that the model was not .* c \(1\)"),
    (FINETUNE, [SCRATCH, "data.test=['labels:{made}/list.txt:{made}/test']"], "absent.png"),
    (FINETUNE, [SCRATCH, "data.test=null"], "data.test is unset"),
    (FINETUNE, [], "set finetune.path to the pre-trained weights"),
    (FINETUNE, ["finetune.path=/nowhere.pth"], "/nowhere.pth"),
    (FINETUNE, ["finetune.path={made}/cut.pth"], "cut.pth"),
    (FINETUNE, ["finetune.path={made}/run", "finetune.weight_style=pytorch"], "style of oneflow"),
    (FINETUNE, ["finetune.path={made}/nan"], r"NaN or infinity: blocks.0.mlp.*bias \(1 of 32 v"),
    (FINETUNE, ["train.load_weight={made}/run"], "without a class head"),
    (PRETRAIN, ["train.load_weight={made}/inf.pth"], r"hold NaN or infinity: blocks.0.mlp.*bias"),
    (PRETRAIN, ["train.load_weight={made}/file"], "file"),
    (PRETRAIN, ["train.output_dir={made}/file/out"], "file/out cannot be written: Not a directory"),
]
CALLS = [(option, *mistake) for option in ("", "--dry-run") for mistake in MISTAKES]
CALLS += [("--fast-dev-run", *MISTAKES[number]) for number in (2, 4, 9)]
# A run that does not evaluate reads no test data; a trial of it does.
CALLS += [("--fast-dev-run", PRETRAIN, ["data.test=[/nowhere]"], "/nowhere does not exist")]


@pytest.mark.parametrize("option, config, overrides, message", CALLS)
def test_no_step_is_taken(start, monkeypatch, option, config, overrides, message):
    monkeypatch.setattr(TaskTrainer, "run_step", lambda trainer: pytest.fail("a step was taken"))
    with pytest.raises(UserError) as caught:
        start(config, option, *overrides)
    assert re.search(message, str(caught.value))


def test_the_files_of_an_evaluation_cannot_be_written(start, tmp_path):
    (tmp_path / "out/predictions.csv").mkdir(parents=True)
    asked = ["train.load_weight={made}/classes", "task.predictions=True", SCRATCH]
    text = start(FINETUNE, "", EVALUATE, "train.evaluation.eval_epoch=null", PERIOD, *asked)
    said = "cannot be written: Is a directory; training continues without the evaluation's files"
    assert text.count(said) == 2 and (tmp_path / "out/model_final").is_dir()
    with pytest.raises(UserError, match="out cannot be written: Is a directory$"):
        start(FINETUNE, "--eval-only", *asked)


@pytest.mark.parametrize(
    "option, overrides, message",
    [
        ("", ["data.test=[{made}/other]"], "data.test has classes that the model was not trained"),
        ("--dry-run", ["data.test=[{made}/other]"], r"not trained on: c \(1\)"),
        ("", ["data.test=null"], "data.test is unset: set it to a list of folders$"),
        ("", ["train.output_dir={made}/file"], "file cannot be written: File exists"),
        ("--dry-run", ["train.load_weight={made}/nan"], "without a class head"),
        ("--dry-run", ["train.load_weight=null"], "nothing to evaluate: there is no checkpoint in"),
    ],
)
def test_an_evaluation_that_cannot_be(start, option, overrides, message):
    with pytest.raises(UserError) as caught:
        start(FINETUNE, f"--eval-only {option}", "train.load_weight={made}/classes", *overrides)
    assert re.search(message, str(caught.value))


@pytest.mark.parametrize("option, samples", [("", "20 samples"), ("--dry-run", "8 of 20 samples")])
@pytest.mark.parametrize(
    "batch",
    [
        ["train.global_batch_size=7", "train.num_accumulation_steps=3"],
        ["train.global_batch_size=null", "train.train_micro_batch_size=5"],
        ["train.global_batch_size=null", "train.base_lr=null"],
    ],
)
def test_an_evaluation_asks_nothing_of_the_training_batch(start, tmp_path, option, samples, batch):
    weights = "train.load_weight={made}/classes"
    assert f"evaluation on {samples}: top1" in start(
        FINETUNE, f"--eval-only {option}", weights, *batch
    )
    assert (tmp_path / "out").exists() == (not option)


def test_an_evaluation_runs_the_evaluators_that_are_on(start, made):
    weights = "train.load_weight={made}/run"
    text = start(PRETRAIN, "--eval-only", weights, f"{KNN}.period=7", f"{KNN}.neighbours=3")
    assert "evaluation on 20 samples: loss" in text and "probe: top1" not in text
    data = [f"data.{split}=[{made}/{split}]" for split in ("train", "test")]
    expected = nearest_neighbours(load_run(PRETRAIN, [*data, f"train.load_weight={made}/run"]), [3])
    assert float(re.search(r"knn: top1 (\S+) \(", text)[1]) == pytest.approx(expected[3])
    lacking = [f"{KNN}.epoch=5", "data.train=[/nowhere]"]
    with pytest.raises(UserError, match="^train.evaluation.evals.knn: .*/nowhere does not exist"):
        start(PRETRAIN, "--eval-only", weights, *lacking)


@pytest.mark.parametrize("option", ["--eval-only", "--eval-only --dry-run", "--resume"])
def test_a_folder_that_is_misspelt(start, made, tmp_path, option):
    """It is not made, and the run that was probably meant is named."""
    (tmp_path / "out-digits/model_final").mkdir(parents=True)
    (tmp_path / "out-empty").mkdir()
    with pytest.raises(UserError, match="did you mean '.*/out-digits'"):
        start(PRETRAIN, option, f"train.output_dir={tmp_path}/out-digit")
    with pytest.raises(UserError, match=r"/gone/run( holds no run to resume|;.*weights)$"):
        start(PRETRAIN, option, f"train.output_dir={tmp_path}/gone/run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out-digits", "out-empty"]
    assert [path.name for path in (tmp_path / "out-digits").iterdir()] == ["model_final"]


def test_resuming_nothing(start):
    with pytest.raises(UserError, match="--resume: .*/out holds no run to resume"):
        start(PRETRAIN, "--dry-run --resume")


@pytest.mark.parametrize(
    "config, overrides, inputs, evaluated",
    [
        (PRETRAIN, [], ["images: [1, 32, 32] float32", "noise: [64] float32"], None),
        (
            FINETUNE,
            ["finetune.path={made}/run", "train.evaluation.eval_metric=loss"],
            ["images: [1, 32, 32] float32", "path_noise: [1, 2] float32", "labels: [2] float32"],
            "evaluation on 8 of 20 samples: top1",
        ),
    ],
)
def test_a_dry_run(start, tmp_path, config, overrides, inputs, evaluated):
    text = start(config, "--dry-run", *overrides)
    for name in inputs:
        assert f"input {name} a sample" in text
    assert (evaluated in text) if evaluated else ("evaluation on" not in text)
    assert "one step" in text and "nothing was written" in text
    assert list(tmp_path.iterdir()) == []


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_dry_run_where_a_run_lies(start, tmp_path, caplog):
    """Resumed after the fourth step: it takes the fifth, and leaves all as it was."""
    options = ["train.checkpointer.period=4", "train.save_on_signal=False"]
    start(PRETRAIN, "", *options)
    shutil.rmtree(tmp_path / "out/model_final")
    before = files(tmp_path)
    assert "out holds an earlier run: continue it by --resume" in start(PRETRAIN, "--dry-run")
    caplog.clear()
    text = start(PRETRAIN, "--dry-run --resume")
    assert "Loaded checkpoint" in text and "model_0000003" in text
    assert "[5/5] training loss" in text and "one step" in text and "an earlier run" not in text
    assert files(tmp_path) == before


def test_a_trial_without_test_data_says_so(start, tmp_path):
    text = start(PRETRAIN, "--fast-dev-run", "data.test=null", "train.save_on_signal=False")
    assert "nothing is evaluated: data.test is unset" in text and "evaluation on" not in text
    assert (tmp_path / "out/fast_dev_run/model_final").is_dir()
