"""Looks at a run's encoder: a linear probe of its features, pictures of its reconstructions."""

from __future__ import annotations

from typing import NamedTuple, Sequence

import numpy as np
import oneflow as flow
from omegaconf import DictConfig
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from libai_ext.config import fresh, instantiate
from libai_ext.data.sampler import SampleKey
from libai_ext.errors import DataError
from libai_ext.placement import batch_sbp, set_layout, to_global
from projects.MAE.modeling.mae import MaskedAutoencoder
from projects.MAE.pictures import panels, tile
from projects.MAE.run import resolve
from projects.MAE.weights.load import load_weights
from projects.MAE.weights.match import DECODER

_BATCH = 128


class Run(NamedTuple):
    """A config and its model."""

    cfg: DictConfig
    model: MaskedAutoencoder


def load_run(config_file: str, opts: Sequence[str], weights: bool = True) -> Run:
    """The model of a config, with the weights of ``train.load_weight`` or else of its output
    directory, or as initialised."""
    cfg = resolve(config_file, opts)
    set_layout(cfg.train.dist, instantiate(cfg.task).pipeline_layers(cfg.model))
    flow.manual_seed(cfg.train.seed)
    model = instantiate(fresh(cfg.model))
    if weights:
        # An encoder alone will do for features.
        load_weights(model, cfg.train.load_weight or cfg.train.output_dir, replaced=DECODER)
    return Run(cfg, model.eval())


def _dataset(cfg: DictConfig, split: str):
    """The split with the transform of evaluation, labels included."""
    node = fresh(cfg.dataloader.test.dataset)
    node.source.roots = cfg.data[split]
    node.labels = True
    return instantiate(node)


def _stack(dataset, indices, name: str) -> np.ndarray:
    return np.stack([dataset[SampleKey(0, int(i))][name] for i in indices])


def features(run: Run, split: str):
    """Mean patch token [N, D] and class number [N] of every sample of a split."""
    dataset = _dataset(run.cfg, split)
    parts, labels = [], []
    for start in range(0, len(dataset), _BATCH):
        indices = range(start, min(start + _BATCH, len(dataset)))
        samples = [dataset[SampleKey(0, index)] for index in indices]
        labels += [sample["labels"] for sample in samples]
        images = to_global(np.stack([sample["images"] for sample in samples]), batch_sbp())
        with flow.no_grad():
            parts.append(run.model.features(images)[:, 1:].mean(dim=1).numpy())
    return np.concatenate(parts), np.array(labels)


def accuracies(run: Run) -> dict[str, float]:
    """Top-1 on the test split, in percent, of classifiers of the frozen features."""
    train, test = features(run, "train"), features(run, "test")
    classifiers = {
        "5 nearest neighbours": KNeighborsClassifier(5),
        "linear probe": LogisticRegression(max_iter=2000),
    }
    return {
        name: 100 * make_pipeline(StandardScaler(), classifier).fit(*train).score(*test)
        for name, classifier in classifiers.items()
    }


def nearest_neighbours(run: Run, counts: Sequence[int]) -> dict[int, float]:
    """Top-1 on the test split, in percent, by number of neighbours (cosine similarity, weighted).

    Raises:
        DataError: fewer training samples than neighbours.
    """
    (train, labels), (test, expected) = features(run, "train"), features(run, "test")
    if max(counts) > len(train):
        raise DataError(f"{max(counts)} neighbours among {len(train)} training samples")
    train, test = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (train, test))
    accuracy = {}
    for count in counts:
        classifier = KNeighborsClassifier(count, metric="cosine", weights=_similarity)
        accuracy[count] = 100 * classifier.fit(train, labels).score(test, expected)
    return accuracy


def _similarity(distances: np.ndarray) -> np.ndarray:
    return np.maximum(1 - distances, 1e-6)


def reconstruction_picture(run: Run, samples: int, scale: int) -> Image.Image:
    """Test samples spread evenly over the split: original, masked, reconstruction."""
    cfg, model = run
    dataset = _dataset(cfg, "test")
    indices = np.linspace(0, len(dataset) - 1, samples).astype(int)
    images, noise = (_stack(dataset, indices, name) for name in ("images", "noise"))
    with flow.no_grad():
        out = model(to_global(images, batch_sbp()), to_global(noise, batch_sbp()))
    pictures = panels(
        images,
        out["prediction"].numpy(),
        out["mask"].numpy(),
        model.patch_embed.grid_size,
        cfg.data.mean,
        cfg.data.std,
        model.norm_pix_loss,
    )
    return tile(pictures[:, [0, 1, 3]], samples_per_row=4, scale=scale)
