"""Accuracy, loss and confusion of a classifier."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import NamedTuple, Sequence

import numpy as np

from libai_ext.errors import DataError
from libai_ext.files.atomic import atomic_file
from libai_ext.text import csv_cell, printable


class ClassResult(NamedTuple):
    """Result for one class; a share of no samples is nan."""

    name: str
    support: int  # samples of the class
    predicted: int  # samples predicted as this class
    correct: int

    @property
    def recall(self) -> float:
        return self.correct / self.support if self.support else math.nan

    @property
    def precision(self) -> float:
        return self.correct / self.predicted if self.predicted else math.nan


class Classification:
    """Evaluator: top-1 and top-5 accuracy and cross entropy, each sample once.

    Hits are integers and losses are summed exactly in float64, so the results do not depend on the
    batches. Equal logits rank by class number, lowest first; nan ranks last.

    Args:
        classes: their names or number; the model must have as many outputs.
        labels, logits: names of the input [N] and the output [N, K].
    """

    def __init__(
        self, classes: Sequence[str] | int, labels: str = "labels", logits: str = "logits"
    ):
        if isinstance(classes, int):
            classes = [str(number) for number in range(classes)]
        self.classes = list(classes)
        self.names = labels, logits
        self._batches: list[tuple[np.ndarray, ...]] = []

    def process(self, inputs, outputs) -> None:
        """Add a batch.

        Raises:
            DataError: the model does not have one output per class, or a label is not a class.
        """
        labels, logits = inputs[self.names[0]], outputs[self.names[1]].astype(np.float64)
        count = len(self.classes)
        if logits.shape[1] != count:
            raise DataError(
                f"the data set has {count} classes, the model's head {logits.shape[1]} outputs: "
                "evaluate on the data of the training, or set model.num_classes"
            )
        wrong = labels[(labels < 0) | (labels >= count)]
        if wrong.size:
            raise DataError(f"label {wrong[0]} is not one of the data set's {count} classes")
        rows = np.arange(len(labels))
        ranked = np.where(np.isnan(logits), -np.inf, logits)
        own = ranked[rows, labels][:, None]
        above = (ranked > own) | ((ranked == own) & (np.arange(count) < labels[:, None]))
        log_shares = _log_softmax(logits)
        predicted = ranked.argmax(axis=1)
        self._batches.append(
            (
                labels.astype(np.int64),
                predicted,
                above.sum(axis=1),
                -log_shares[rows, labels],
                np.exp(log_shares[rows, predicted]),
            )
        )

    def results(self) -> dict[str, float]:
        """``top1`` and ``top5`` in per cent, and ``loss``, the mean cross entropy in nats.

        Raises:
            DataError: there were no samples.
        """
        ranks, losses = self._column(2), self._column(3)
        return {
            "top1": 100 * int((ranks < 1).sum()) / len(ranks),
            "top5": 100 * int((ranks < 5).sum()) / len(ranks),
            "loss": _exact_sum(losses) / len(losses),
        }

    def confusion(self) -> np.ndarray:
        """int64 [K, K]: samples by true class (row) and predicted class (column)."""
        count = len(self.classes)
        cells = self._column(0) * count + self._column(1)
        return np.bincount(cells, minlength=count**2).reshape(count, count)

    def per_class(self) -> list[ClassResult]:
        count = len(self.classes)
        labels, predicted = self._column(0), self._column(1)
        columns = [
            np.bincount(which, minlength=count).tolist()
            for which in (labels, predicted, labels[labels == predicted])
        ]
        return [ClassResult(*row) for row in zip(self.classes, *columns)]

    def table(self) -> str:
        """:meth:`per_class` as a text table; shares in per cent."""
        classes = [printable(name) for name in self.classes]
        width = max(len("class"), *map(len, classes))
        lines = [f"{'class':<{width}}  support  recall  precision"]
        for name, row in zip(classes, self.per_class()):
            recall, precision = (_percent(share) for share in (row.recall, row.precision))
            lines.append(f"{name:<{width}}  {row.support:>7}  {recall:>6}  {precision:>9}")
        return "\n".join(lines)

    def write_predictions(self, path: str, samples: Sequence[str] | None = None) -> None:
        """Write a CSV with one line per sample, in order: sample, label, predicted (names),
        probability of the predicted class, rank of the label (0 = hit), loss. Names are escaped by
        :func:`libai_ext.text.csv_cell`.

        Args:
            samples: their names, such as file paths; None: numbers from 0.
        """
        columns = [self._column(number) for number in range(5)]
        names = range(len(columns[0])) if samples is None else samples
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(target) as path, open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["sample", "label", "predicted", "probability", "rank", "loss"])
            for sample, label, predicted, rank, loss, share in zip(names, *columns):
                cells = map(csv_cell, (str(sample), self.classes[label], self.classes[predicted]))
                writer.writerow([*cells, f"{share:.6g}", rank, f"{loss:.6g}"])

    def _column(self, number: int) -> np.ndarray:
        if not self._batches:
            raise DataError("there was no sample to evaluate")
        return np.concatenate([batch[number] for batch in self._batches])


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    # The loss of an infinite logit is nan, without a warning.
    with np.errstate(invalid="ignore", divide="ignore"):
        shifted = logits - logits.max(axis=1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _exact_sum(values: np.ndarray) -> float:
    """The same in any order, since it rounds once; fsum fails on infinities of both signs."""
    return math.fsum(values) if np.isfinite(values).all() else float(values.sum())


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.2f}"
