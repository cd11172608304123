"""``--eval-only`` on an official fine-tuned checkpoint, and what it writes."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import oneflow as flow
import pytest
from PIL import Image

from libai_ext.placement import batch_sbp, to_global
from projects.MAE.modeling.vit import ViTClassifier
from projects.MAE.weights.load import load_weights

GOLDEN = Path(__file__).parent / "golden"
CONFIG = "projects/MAE/configs/mae_finetune.py"
SIZES = ["img_size=[8,8]", "patch_size=2", "embed_dim=12", "depth=2", "num_heads=3"]
SIZES = [f"model.{size}" for size in SIZES] + ["model.num_classes=5"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """23 noise images of 8 x 8 in five classes."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(23):
        path = root / f"class{number % 5}" / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(256, size=(8, 8, 3), dtype=np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def evaluate(launch, images, tmp_path_factory):
    def run(processes, *options, status=0):
        folder = tmp_path_factory.mktemp("evaluation")
        text = launch.train(
            CONFIG,
            processes,
            "--eval-only",
            f"data.test=[{images}]",
            f"train.load_weight={GOLDEN / 'fb_finetune.pth'}",
            f"train.output_dir={folder}",
            "train.test_micro_batch_size=4",
            *SIZES,
            *options,
            status=status,
        )
        return folder, text

    return run


def test_replaced_samples_are_counted(evaluate, images, tmp_path):
    """By all processes and their workers."""
    shutil.copytree(images, tmp_path / "images")
    for number in (0, 3):
        (tmp_path / f"images/class{number}/broken.png").write_bytes(b"no picture")
    _, text = evaluate(2, f"data.test=[{tmp_path}/images]")
    assert "on 25 samples" in text
    assert "2 unreadable samples of the evaluation were replaced by others, which count" in text


WRITTEN = ["task.per_class=True", "task.confusion=True", "task.predictions=True"]


@pytest.fixture(scope="module")
def one_process(evaluate):
    return evaluate(1, *WRITTEN, "graph.enabled=True")


def rows(folder):
    with open(folder / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_predictions_are_the_models(one_process, images):
    """Against the model called directly on the same pixels (8 x 8: the resize to 9 and the crop
    are part of the recipe)."""
    model = ViTClassifier((8, 8), 2, 3, 5, 12, 2, 3).eval()
    load_weights(model, str(GOLDEN / "fb_finetune.pth"))
    found = rows(one_process[0])
    paths = sorted(images.rglob("*.png"))
    assert [row["sample"] for row in found] == [str(path) for path in paths]
    assert [row["label"] for row in found] == [path.parent.name for path in paths]
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    for row, path in zip(found, paths):
        image = Image.open(path).resize((9, 9), Image.Resampling.BICUBIC).crop((0, 0, 8, 8))
        array = (np.asarray(image, np.float32) / 255 - mean) / std
        with flow.no_grad():
            batch = to_global(np.ascontiguousarray(array.transpose(2, 0, 1)[None]), batch_sbp())
            logits = model(batch)["prediction_scores"].numpy()[0].astype(np.float64)
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        assert row["predicted"] == f"class{logits.argmax()}"
        assert float(row["probability"]) == pytest.approx(shares.max(), rel=1e-4)


def test_results_and_files(one_process):
    folder, text = one_process
    found = rows(folder)
    hits = sum(row["label"] == row["predicted"] for row in found)
    assert float(re.search(r"top1 ([\d.]+)", text).group(1)) == pytest.approx(100 * hits / 23, 1e-4)
    assert "on 23 samples" in text
    table = (folder / "per_class.txt").read_text().splitlines()
    assert [line.split()[:2] for line in table[1:]] == [
        [f"class{k}", "5" if k < 3 else "4"] for k in range(5)
    ]
    assert Image.open(folder / "confusion.png").size[0] > 100
    assert not (folder / "model_final").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "processes, options",
    [
        (2, []),
        (3, ["graph.enabled=False", "train.dist.tensor_parallel_size=3"]),
        (2, ["train.dist.pipeline_parallel_size=2"]),
    ],
    ids=["dp2", "tp3 eager", "pp2"],
)
def test_any_layout_predicts_the_same(evaluate, one_process, processes, options):
    folder, _ = evaluate(processes, *WRITTEN, *options)
    for ours, theirs in zip(rows(folder), rows(one_process[0])):
        for name in ("sample", "label", "predicted", "rank"):
            assert ours[name] == theirs[name]
        for name in ("probability", "loss"):
            assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-4)


@pytest.mark.parametrize(
    "options, message",
    [
        (["train.load_weight=null"], "nothing to evaluate: there is no checkpoint in "),
        (["--resume"], "--resume --eval-only evaluates the checkpoint of train.output_dir, train"),
        (["model.num_classes=6"], "fb_finetune.pth is of another model: .*num_classes 6, .* has 5"),
        (["model.depth=3"], "model.depth 3, the file has 2"),
        (["model.pooling=cls"], "model.pooling cls, the file has mean"),
        (["train.load_weight=/nowhere.pth"], "/nowhere.pth"),
    ],
)
def test_what_does_not_fit_is_said(evaluate, options, message):
    _, text = evaluate(1, *options, status=2)
    assert re.search(message, text), text
    assert "Traceback" not in text


def test_a_checkpoint_that_was_never_completed_is_none(evaluate, tmp_path):
    (tmp_path / "model_0000099.partial").mkdir()
    (tmp_path / "model_card.md").touch()
    options = ["train.load_weight=null", f"train.output_dir={tmp_path}"]
    _, text = evaluate(1, *options, status=2)
    assert f"nothing to evaluate: there is no checkpoint in {tmp_path};" in text
