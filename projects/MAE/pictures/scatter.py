"""Features of images as points in the plane, coloured by class."""

from __future__ import annotations

from typing import Sequence

import numpy as np
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.preprocessing import StandardScaler

from libai_ext.errors import ConfigError, DataError
from libai_ext.text import printable

# With more classes there is no legend; colours repeat after ten.
_MAX_NAMED = 20


def scatter(
    features: np.ndarray, labels: np.ndarray, classes: Sequence[str], projection: str, path: str
) -> None:
    """Write the picture.

    Args:
        features: [N, ...]; labels: class numbers [N], -1 for none.
        projection: ``"pca"``, or ``"tsne"`` on the first 50 principal components.

    Raises:
        DataError: fewer than three images.
        ConfigError: the file cannot be written.
    """
    if len(features) < 3:
        raise DataError(f"{len(features)} images make no picture: at least 3")
    points = StandardScaler().fit_transform(features.reshape(len(features), -1))
    count = 2 if projection == "pca" else min(50, *points.shape)
    points = PCA(count, random_state=0).fit_transform(points)
    if projection == "tsne":
        perplexity = min(30, (len(points) - 1) / 3)
        points = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(points)
    figure = Figure(figsize=(8, 8))
    axes = figure.add_subplot(xticks=[], yticks=[])
    present = np.unique(labels)
    for number in present:
        x, y = points[labels == number].T
        axes.scatter(x, y, s=8)
    if 1 < len(present) <= _MAX_NAMED:
        legend = axes.legend(axes.collections, ["class"] * len(present))
        for text, number in zip(legend.get_texts(), present):
            name = printable(str(classes[number])) if number >= 0 else "no class"
            text.set(text=name, parse_math=False)
    try:
        figure.savefig(path, dpi=120, bbox_inches="tight")
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write {path}: {error}") from error
