from __future__ import annotations

import csv
import math

import numpy as np
import pytest
from PIL import Image

from libai_ext.data.sampler import EvalSampler
from libai_ext.engine.confusion import draw
from libai_ext.engine.metrics import Classification, ClassResult
from libai_ext.errors import DataError


def evaluated(labels, logits, classes=None):
    logits = np.asarray(logits, np.float32)
    evaluator = Classification(classes or logits.shape[1])
    evaluator.process({"labels": np.asarray(labels)}, {"logits": logits})
    return evaluator


def test_numbers_by_hand():
    log = np.log([[0.7, 0.1, 0.2], [0.3, 0.6, 0.1], [0.25, 0.25, 0.5], [0.1, 0.1, 0.8]])
    evaluator = evaluated([0, 0, 2, 1], log + [[5], [-3], [0], [900]], ["ant", "bee", "cat"])
    results = evaluator.results()
    assert (results["top1"], results["top5"]) == (50, 100)
    expected = -(math.log(0.7) + math.log(0.3) + math.log(0.5) + math.log(0.1)) / 4
    assert results["loss"] == pytest.approx(expected, rel=1e-4)  # float32 at 900
    assert evaluator.confusion().tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 1]]
    ant, bee, cat = evaluator.per_class()
    assert ant == ClassResult("ant", support=2, predicted=1, correct=1)
    assert (ant.recall, ant.precision) == (0.5, 1.0)
    assert (bee.recall, bee.precision) == (0.0, 0.0)
    assert (cat.recall, cat.precision) == (1.0, 0.5)
    assert evaluator.table().splitlines() == [
        "class  support  recall  precision",
        "ant          2   50.00     100.00",
        "bee          1    0.00       0.00",
        "cat          1  100.00      50.00",
    ]


def test_top5_counts_five():
    logits = -np.arange(8.0)[None].repeat(8, 0)
    results = evaluated(np.arange(8), logits).results()
    assert (results["top1"], results["top5"]) == (12.5, 62.5)


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_few_classes(classes):
    results = evaluated([0], np.zeros((1, classes))).results()
    assert results["top5"] == 100
    assert results["loss"] == pytest.approx(math.log(classes))


def test_ties_go_to_the_lowest_class():
    """All equal: class 0 is predicted, class k ranks k-th, as a stable sort has it."""
    evaluator = evaluated(np.arange(8), np.ones((8, 8)))
    results = evaluator.results()
    assert (results["top1"], results["top5"]) == (12.5, 62.5)
    assert evaluator.confusion()[:, 0].tolist() == [1] * 8

    rng = np.random.default_rng(0)
    logits = rng.integers(0, 3, (500, 9)).astype(np.float32)
    labels = rng.integers(0, 9, 500)
    order = np.argsort(-logits, axis=1, kind="stable")
    results = evaluated(labels, logits).results()
    assert results["top1"] == 100 * (order[:, 0] == labels).sum() / 500
    assert results["top5"] == 100 * (order[:, :5] == labels[:, None]).any(1).sum() / 500


def test_nan_is_no_hit():
    results = evaluated([1, 1], [[math.nan] * 2, [0.0, math.nan]]).results()
    assert results["top1"] == 0
    assert math.isnan(results["loss"])


def test_a_class_without_samples():
    evaluator = evaluated([0], [[1.0, 0.0]])
    _, absent = evaluator.per_class()
    assert math.isnan(absent.recall) and math.isnan(absent.precision)
    assert evaluator.table().splitlines()[2].split() == ["1", "0", "-", "-"]


def test_data_that_do_not_fit_the_head():
    with pytest.raises(DataError, match="3 classes, the model's head 2 outputs"):
        evaluated([0], [[1.0, 0.0]], ["a", "b", "c"])
    with pytest.raises(DataError, match="label 2 is not one of the data set's 2 classes"):
        evaluated([2], [[1.0, 0.0]])
    with pytest.raises(DataError, match="no sample"):
        Classification(3).results()


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_results_do_not_depend_on_the_batches(ranks):
    """As evaluate() cuts global batches, against NumPy on all logits at once."""
    for samples in range(1, 41):
        rng = np.random.default_rng(samples)
        logits = rng.normal(0, 3, (samples, 7)).astype(np.float32)
        labels = rng.integers(0, 7, samples)
        evaluator = Classification(7)
        samplers = [EvalSampler(samples, 2, rank, ranks) for rank in range(ranks)]
        for number, parts in enumerate(zip(*samplers)):
            rows = [key.index for part in parts for key in part][: samplers[0].valid(number)]
            evaluator.process({"labels": labels[rows]}, {"logits": logits[rows]})

        order = np.argsort(-logits, axis=1, kind="stable")
        exact = logits.astype(np.float64)
        shifted = exact - exact.max(1, keepdims=True)
        losses = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(samples), labels]
        assert evaluator.results() == {
            "top1": 100 * int((order[:, 0] == labels).sum()) / samples,
            "top5": 100 * int((order[:, :5] == labels[:, None]).any(1).sum()) / samples,
            "loss": pytest.approx(math.fsum(losses) / samples, rel=1e-15),
        }
        assert evaluator.results() == evaluated(labels, logits).results()
        assert evaluator.confusion().sum() == samples


def test_predictions_file(tmp_path):
    log = np.log([[0.7, 0.1, 0.2], [0.3, 0.6, 0.1]])
    evaluator = evaluated([0, 2], log, ["ant", "bee, honey", "cat"])
    path = tmp_path / "new" / "predictions.csv"
    evaluator.write_predictions(str(path), samples=["a/0.png", "c/1.png"])
    assert list(csv.reader(path.open())) == [
        ["sample", "label", "predicted", "probability", "rank", "loss"],
        ["a/0.png", "ant", "ant", "0.7", "0", "0.356675"],
        ["c/1.png", "cat", "bee, honey", "0.6", "2", "2.30259"],
    ]
    assert [entry.name for entry in path.parent.iterdir()] == ["predictions.csv"]
    evaluator.write_predictions(str(path))
    assert [row[0] for row in csv.reader(path.open())] == ["sample", "0", "1"]


def test_names_in_files_are_text(tmp_path):
    """Neither a spreadsheet nor a terminal does anything by a name."""
    classes = ["=1+1", "\x1b[2J", "two\nlines", "\udcff"]
    evaluator = evaluated([0, 1, 2, 3], np.eye(4), classes)
    path = tmp_path / "predictions.csv"
    evaluator.write_predictions(str(path), samples=["@a.png", "-b.png", "c\x00.png", "\udce9.png"])
    assert [row[:3] for row in csv.reader(path.open(encoding="utf-8"))][1:] == [
        ["'@a.png", "'=1+1", "'=1+1"],
        ["'-b.png", r"\x1b[2J", r"\x1b[2J"],
        [r"c\x00.png", r"two\nlines", r"two\nlines"],
        [r"\xe9.png", r"\xff", r"\xff"],
    ]
    names = [line.split()[0] for line in evaluator.table().splitlines()]
    assert names == ["class", "=1+1", r"\x1b[2J", r"two\nlines", r"\xff"]
    draw(evaluator.confusion(), classes)


def test_confusion_picture(tmp_path):
    """Shares as colours, counts and names as text, all of it inside of the picture."""
    confusion = np.array([[90, 10, 0], [0, 0, 0], [25, 25, 50]])
    figure = draw(confusion, ["ant", "$b_e$", "a rather long name that is cut"])
    figure.savefig(tmp_path / "confusion.png", dpi=100, bbox_inches="tight")
    pixels = np.asarray(Image.open(tmp_path / "confusion.png").convert("L"))
    assert min(edge.min() for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])) == 255
    (axes,) = figure.axes
    shares = np.array([[0.9, 0.1, 0], [0, 0, 0], [0.25, 0.25, 0.5]])
    np.testing.assert_allclose(axes.images[0].get_array(), np.sqrt(shares))
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {(c, r): str(confusion[r, c]) for r in range(3) for c in range(3)}
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        names = ["ant", "$b_e$", "a rather long name that…"]
        assert [label.get_text() for label in labels] == names
        assert not any(label.get_parse_math() for label in labels)


def test_confusion_picture_of_many_classes():
    figure = draw(np.eye(60, dtype=np.int64), [str(number) for number in range(60)])
    (axes,) = figure.axes
    np.testing.assert_array_equal(axes.images[0].get_array(), np.eye(60))
    assert (list(axes.texts), list(axes.get_xticks())) == ([], [])
    assert figure.get_size_inches().tolist() == [12, 12]
