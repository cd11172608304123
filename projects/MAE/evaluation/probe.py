"""Evaluate a run's encoder: k-NN and linear probes on frozen features, and reconstructions."""

from __future__ import annotations

import logging
import warnings
from typing import NamedTuple, Sequence

import numpy as np
import oneflow as flow
from omegaconf import DictConfig
from PIL import Image
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from libai_ext.config.lazy_config import fresh, instantiate
from libai_ext.data import classes
from libai_ext.data.sampler import SampleKey
from libai_ext.errors import DataError
from libai_ext.placement import batch_sbp, set_layout, to_global
from projects.MAE.modeling.mae import MaskedAutoencoder
from projects.MAE.modeling.vit import ViTClassifier
from projects.MAE.pictures.figure import image_grid
from projects.MAE.pictures.panels import TITLES, panels
from projects.MAE.run import resolve
from projects.MAE.weights.adopt import starting_point
from projects.MAE.weights.describe import DECODER
from projects.MAE.weights.load import load_weights

logger = logging.getLogger(__name__)

NEIGHBOURS = (1, 5, 10, 20)
_BATCH = 128


class Run(NamedTuple):
    """A config and its model."""

    cfg: DictConfig
    model: MaskedAutoencoder | ViTClassifier


def load_run(config_file: str, opts: Sequence[str], weights: bool = True) -> Run:
    """Build the model of a config. Its weights come from ``train.load_weight``, else from the run
    in its output directory, else from ``finetune.path``; without ``weights`` it keeps its initial
    ones."""
    cfg = resolve(config_file, opts, evaluate=weights)
    path, finetune = cfg.train.load_weight or cfg.train.output_dir, cfg.get("finetune")
    starts = weights and starting_point(cfg, evaluate=True) is None
    starts = starts and finetune is not None and finetune.enable
    if starts:
        cfg = resolve(config_file, opts)
    set_layout(cfg.train.dist)
    flow.manual_seed(cfg.train.seed)
    model = instantiate(fresh(cfg.model))
    if starts:
        instantiate(cfg.task).start_from(model, cfg)
    elif weights:
        # Features need only an encoder.
        load_weights(model, path, replaced=(*DECODER, "head"), grid=cfg.train.load_grid)
    return Run(cfg, model.eval())


def dataset_of(cfg: DictConfig, split: str):
    """A split with labels and the evaluation transform."""
    node = fresh(cfg.dataloader.test.dataset)
    node.source.roots = cfg.data[split]
    node.labels = True
    return instantiate(node)


def labelled(cfg: DictConfig):
    """Training and test splits with the same class numbers, and the indices of the labelled
    training samples.

    Raises:
        DataError: no training sample is labelled, or a test sample has no class or one that the
            training split lacks.
    """
    train, test = dataset_of(cfg, "train"), dataset_of(cfg, "test")
    unlabelled = classes.unlabelled_samples(train.source)
    indices = np.flatnonzero(~unlabelled)
    if not len(indices):
        classes.use_class_numbers(train.source, train.source.classes, "data.train")
    if unlabelled.any():
        logger.warning(f"data.train: {unlabelled.sum():,} samples without a class are skipped")
    classes.use_class_numbers(test.source, train.source.classes, "data.test")
    return train, test, indices


def _stack(dataset, indices, name: str) -> np.ndarray:
    return np.stack([dataset[SampleKey(0, int(i))][name] for i in indices])


def features(run: Run, dataset, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, D] (the mean patch token, or the input of a classifier's head) and class numbers
    [N]."""
    parts, labels = [], []
    for start in range(0, len(indices), _BATCH):
        samples = [dataset[SampleKey(0, int(i))] for i in indices[start : start + _BATCH]]
        labels += [sample["labels"] for sample in samples]
        images = to_global(np.stack([sample["images"] for sample in samples]), batch_sbp())
        with flow.no_grad():
            parts.append(pooled(run.model, images).numpy())
    return np.concatenate(parts), np.array(labels)


def pooled(model, images: flow.Tensor) -> flow.Tensor:
    """[N, D]: the mean patch token of an autoencoder, or the input of a classifier's head."""
    found = model.features(images)
    return found[:, 1:].mean(dim=1) if found.ndim == 3 else found


def _both(run: Run):
    """Features and class numbers of the training and of the test split."""
    train, test, indices = labelled(run.cfg)
    return features(run, train, indices), features(run, test, range(len(test)))


def accuracies(run: Run) -> dict[str, float]:
    """Top-1 test accuracy, in percent, of classifiers on frozen features."""
    train, test = _both(run)
    neighbours = make_pipeline(StandardScaler(), KNeighborsClassifier(5))
    return {
        "5 nearest neighbours": 100 * neighbours.fit(*train).score(*test),
        "linear probe": linear_accuracy(train, test, 2000),
    }


def linear_accuracy(train, test, iterations: int) -> float:
    """Top-1, in percent, of a logistic regression on standardised features.

    Args:
        train, test: features [N, D] and class numbers [N].
    """
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=iterations))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the caller sets the iterations
        return 100 * regression.fit(*train).score(*test)


def nearest_neighbours(run: Run, counts: Sequence[int] | None = None) -> dict[int, float]:
    """k-NN accuracy of frozen features, in percent, by k (cosine similarity, weighted votes).

    Args:
        counts: the values of k. If unset: 1, 5, 10 and 20, up to the number of training samples.

    Raises:
        DataError: k is below 1 or above the number of training samples; or see :func:`labelled`.
    """
    train, test = _both(run)
    return neighbours_accuracy(train, test, counts)


def neighbours_accuracy(train, test, counts: Sequence[int] | None = None) -> dict[int, float]:
    """Like :func:`nearest_neighbours`, on features [N, D] and class numbers [N] of both splits."""
    (train, labels), (test, expected) = train, test
    if counts is None:
        counts = [count for count in NEIGHBOURS if count <= len(train)]
    wrong = [count for count in counts if not 1 <= count <= len(train)]
    if wrong:
        raise DataError(f"{wrong[0]} neighbours among {len(train)} training samples")
    train, test = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (train, test))
    accuracy = {}
    for count in counts:
        # Of unit vectors, the nearest by Euclidean distance are those by cosine, and scikit-learn
        # finds them several times faster.
        classifier = KNeighborsClassifier(count, algorithm="brute", weights=_similarity)
        accuracy[count] = 100 * classifier.fit(train, labels).score(test, expected)
    return accuracy


def _similarity(distances: np.ndarray) -> np.ndarray:
    """The cosine of unit vectors by their distance; positive, as weights have to be."""
    return np.maximum(1 - distances**2 / 2, 1e-6)


def reconstruction_picture(run: Run, samples: int, scale: int) -> Image.Image:
    """Test samples spread evenly over the split, two per row: original, masked, reconstruction,
    reconstruction with the visible patches. ``samples`` is even."""
    cfg, model = run
    dataset = dataset_of(cfg, "test")
    indices = np.linspace(0, len(dataset) - 1, samples).astype(int)
    images, noise = (_stack(dataset, indices, name) for name in ("images", "noise"))
    with flow.no_grad():
        out = model(to_global(images, batch_sbp()), to_global(noise, batch_sbp()))
    pictures = panels(model, cfg.data, images, out["prediction"].numpy(), out["mask"].numpy())
    rows = [[*left, *right] for left, right in zip(pictures[::2], pictures[1::2])]
    return image_grid(rows, TITLES * 2, scale)
