"""The classes of the training data, from training through the checkpoint to an evaluation."""

from __future__ import annotations

import csv
import re

import pytest

from libai_ext.data import classes

CONFIG = "projects/MAE/configs/mae_digits_finetune.py"
TRAINED = ("3", "5", "8")


def part(digits, folder, names):
    """A split of some of the digits, their folders as links."""
    folder.mkdir()
    for name in names:
        (folder / name).symlink_to(digits / name)
    return folder


@pytest.fixture(scope="module")
def run(launch, digits, tmp_path_factory):
    """A folder with ``train``, ``test`` that lacks the class 3, and the run ``run``."""
    folder = tmp_path_factory.mktemp("classes")
    part(digits / "train", folder / "train", TRAINED)
    part(digits / "test", folder / "test", TRAINED[1:])
    text = launch.train(
        CONFIG,
        1,
        *options(folder),
        "train.train_iter=40",
        "train.warmup_iter=2",
        "train.base_lr=0.2",
    )
    return folder, text


def options(folder, test="test"):
    return [
        f"data.train=[{folder}/train]",
        f"data.test=[{folder}/{test}]",
        f"train.output_dir={folder}/run",
        "model.depth=2",
        "model.num_classes=3",
        "finetune.enable=False",
        "model.n_partial=0",
        "graph.enabled=False",
        "dataloader.train.num_workers=1",
    ]


@pytest.mark.slow
def test_a_checkpoint_says_its_classes(run):
    folder, _ = run
    for name in ("run", "run/model_final", "run/model_best"):
        assert classes.saved_classes(str(folder / name)) == list(TRAINED)


@pytest.mark.slow
def test_a_test_split_without_the_first_class_is_evaluated_by_name(launch, run):
    folder, text = run
    extra = ["--eval-only", "task.predictions=True", "data.train=[/gone]"]
    out = launch.train(CONFIG, 2, *options(folder), *extra)
    with open(folder / "run/predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["label"] for row in rows} == {"5", "8"}
    assert all(f"/{row['label']}/" in row["sample"] for row in rows)
    hits = sum(row["label"] == row["predicted"] for row in rows)
    shares = [float(share) for share in re.findall(r"top1 ([\d.]+)", text + out)]
    # In training, alone, and by name.
    assert shares[-1] == pytest.approx(100 * hits / len(rows), abs=1e-3) == shares[-2]
    assert shares[-1] > 45


@pytest.mark.slow
def test_classes_that_were_not_trained_on_are_named(launch, run, digits):
    folder, _ = run
    part(digits / "test", folder / "other", ("5", "7"))
    out = launch.train(CONFIG, 1, *options(folder, "other"), "--eval-only", status=2)
    assert (
        "data.test has classes that the model was not trained on: 7 (1); known are 3, 5, 8" in out
    )
    assert out.count("error:") == 1 and "Traceback" not in out


@pytest.mark.slow
def test_neighbours_by_the_command_line(launch, run):
    folder, _ = run
    out = launch.python("tools/knn.py", CONFIG, *options(folder))
    found = re.findall(r"^ *(\d+) neighbours  top-1 ([\d.]+) %$", out, re.M)
    assert [int(count) for count, _ in found] == [1, 5, 10, 20]
    assert all(float(share) > 70 for _, share in found)
    out = launch.python("tools/knn.py", CONFIG, *options(folder), "--neighbours", "9999", status=2)
    assert "error: 9999 neighbours among " in out
