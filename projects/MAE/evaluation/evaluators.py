"""Measurements while a model is trained: nodes of ``train.evaluation.evals``."""

from __future__ import annotations

import math
from typing import Any, Iterator, Sequence

import numpy as np
from libai.utils import distributed as dist

from libai_ext.config.lazy_config import fresh, instantiate
from libai_ext.config.rule_types import require, whole
from libai_ext.data.dataset import KeyedDataset
from libai_ext.data.sampler import SampleKey
from libai_ext.engine.evaluation import evaluate
from libai_ext.engine.evaluator import Evaluator
from libai_ext.errors import ConfigError, DataError
from projects.MAE.evaluation import probe


class OtherData(Evaluator):
    """The task's own results on other data: the loss on other images, or a classifier's accuracy.

    Args:
        roots: written as in ``data.test``.
    """

    def __init__(self, roots: Sequence[str], period: int | None = None, epoch: float | None = None):
        super().__init__(period, epoch)
        self.roots = list(roots)

    def open(self, trainer) -> None:
        node = fresh(trainer.cfg.dataloader.test.dataset)
        node.source.roots = self.roots
        node.seed = trainer.cfg.train.seed
        self.dataset = instantiate(node)
        name = ", ".join(self.roots)
        trainer.task.check_data(self.dataset, trainer.cfg, name, trained_on=trainer.dataset)

    def run(self, trainer) -> dict[str, float]:
        evaluator = trainer.build_evaluator(self.dataset)
        return trainer.measure(trainer.eval_loader(self.dataset), evaluator)


class _FrozenFeatures(Evaluator):
    """Top-1 accuracy, in percent, of a simple classifier on frozen features: the mean patch token,
    or the input of a classifier's head. The classifier is fitted on rank 0.

    Args:
        train, test: labelled roots; if unset, those of ``data.train`` and ``data.test``.
    """

    metrics = {"top1": "max"}

    def __init__(
        self,
        train: Sequence[str] | None = None,
        test: Sequence[str] | None = None,
        period: int | None = None,
        epoch: float | None = None,
    ):
        super().__init__(period, epoch)
        self.roots = dict(train=train, test=test)

    def open(self, trainer) -> None:
        cfg = trainer.cfg.copy()
        for split, roots in self.roots.items():
            if roots is not None:
                cfg.data[split] = list(roots)
            elif cfg.data[split] is None:
                raise ConfigError(
                    f"data.{split} is unset: its labels are needed to measure features"
                )
        train, test, indices = probe.labelled(cfg)
        self.check(train.source.labels[indices])
        splits = (_Subset(train, indices), test)
        self.train, self.test = (_Kept(trainer.eval_loader(split)) for split in splits)

    def check(self, labels: np.ndarray) -> None:
        """
        Args:
            labels: [N], class numbers of the training samples.

        Raises:
            ConfigError, DataError: nothing can be fitted.
        """
        if len(np.unique(labels)) < 2:
            raise DataError(
                f"the {len(labels):,} labelled samples of data.train are of one class: two are "
                "needed to measure features"
            )

    def run(self, trainer) -> dict[str, float]:
        train = _features(trainer, self.train)
        test = _features(trainer, self.test)
        if not dist.is_main_process():
            return {}
        if trainer.test_batches is not None:  # a trial sees too few samples to fit anything
            return {"top1": math.nan}
        return {"top1": self.accuracy(train, test)}

    def accuracy(self, train, test) -> float:
        """In percent.

        Args:
            train, test: features [N, D] and class numbers [N].
        """
        raise NotImplementedError


class KNN(_FrozenFeatures):
    """Nearest neighbours by cosine similarity, weighted by it, as in ``tools/knn.py``."""

    def __init__(
        self,
        neighbours: int = 20,
        train: Sequence[str] | None = None,
        test: Sequence[str] | None = None,
        period: int | None = None,
        epoch: float | None = None,
    ):
        super().__init__(train, test, period, epoch)
        self.neighbours = neighbours

    def check(self, labels: np.ndarray) -> None:
        super().check(labels)
        require(self, whole(1), neighbours=self.neighbours)
        if self.neighbours > len(labels):
            raise DataError(f"{self.neighbours} neighbours among {len(labels)} labelled samples")

    def accuracy(self, train, test) -> float:
        return probe.neighbours_accuracy(train, test, [self.neighbours])[self.neighbours]


class LinearProbe(_FrozenFeatures):
    """Logistic regression on standardised features (scikit-learn's, L-BFGS)."""

    def __init__(
        self,
        iterations: int = 200,
        train: Sequence[str] | None = None,
        test: Sequence[str] | None = None,
        period: int | None = None,
        epoch: float | None = None,
    ):
        super().__init__(train, test, period, epoch)
        self.iterations = iterations

    def check(self, labels: np.ndarray) -> None:
        super().check(labels)
        require(self, whole(1), iterations=self.iterations)

    def accuracy(self, train, test) -> float:
        return probe.linear_accuracy(train, test, self.iterations)


class _Subset:
    """Some samples of a data set."""

    def __init__(self, dataset: KeyedDataset, indices: np.ndarray):
        self.dataset, self.indices = dataset, indices
        self.collate = dataset.collate

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: SampleKey) -> dict:
        return self.dataset[key._replace(index=int(self.indices[key.index]))]


class _Kept:
    """A loader whose batches stay on the device after the first pass if they are small. To start
    workers and read small images again would take longer than the model does."""

    _MOST_BYTES = 64 << 20

    def __init__(self, loader):
        self.loader = loader
        self.batch_sampler = loader.batch_sampler
        self.batches: list[Any] | None = None

    def __iter__(self) -> Iterator:
        return iter(self.batches) if self.batches is not None else self._read()

    def _read(self) -> Iterator:
        kept, count = [], len(self.batch_sampler)
        for batch in self.loader:
            if count * _bytes(batch) <= self._MOST_BYTES:
                kept.append(batch)
            yield batch
        if len(kept) == count:
            self.batches = kept


def _bytes(batch) -> int:
    tensors = [value.tensor for value in batch.get_fields().values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class _Collect:
    """Gathers features and class numbers on rank 0."""

    def __init__(self):
        self.parts: list[tuple[np.ndarray, np.ndarray]] = []

    def process(self, inputs, outputs) -> None:
        self.parts.append((outputs["features"], inputs["labels"]))

    def results(self) -> dict:
        features, labels = zip(*self.parts)
        return {"features": np.concatenate(features), "labels": np.concatenate(labels)}


def _features(trainer, loader) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, D] and class numbers [N] of a loader's samples, on rank 0."""
    model = trainer.model

    def forward(images, **_):
        return {"features": probe.pooled(model, images)}

    found: Any = evaluate(
        model, loader, trainer.get_batch, _Collect(), trainer.test_batches, forward=forward
    )
    return found.get("features"), found.get("labels")
