"""Draws a confusion matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Sequence

import numpy as np

from libai_ext.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# With more classes, a cell has no count and a row no name.
MAX_WITH_NUMBERS = 40
MAX_NAME_LENGTH = 24  # characters
_SIDE = 12  # inches, of a figure without numbers


def draw(confusion: np.ndarray, classes: Sequence[str]) -> Figure:
    """A row per true class, a column per predicted class, darker = a larger share of the row.

    Save it with ``bbox_inches="tight"``, since the names are outside the axes.

    Args:
        confusion: counts [K, K].
        classes: K names, shown for up to ``MAX_WITH_NUMBERS`` classes.
    """
    # Not at the top: each rank of a training would import it.
    from matplotlib.figure import Figure

    count = len(classes)
    numbers = count <= MAX_WITH_NUMBERS
    side = count * max(0.3, 0.1 + 0.08 * len(str(confusion.max()))) if numbers else _SIDE
    figure = Figure(figsize=(side, side))
    axes = figure.add_axes((0, 0, 1, 1), xlabel="predicted", ylabel="true", xticks=[], yticks=[])
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    # The square root shows rare confusions too.
    axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)
    if not numbers:
        return figure
    names = [_shortened(printable(name)) for name in classes]
    axes.set_xticks(range(count), names, rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(range(count), names, fontsize=8, parse_math=False)
    for (row, column), value in np.ndenumerate(confusion):
        color = "white" if shares[row, column] > 0.3 else "black"
        axes.text(column, row, value, ha="center", va="center", color=color, fontsize=8)
    return figure


def _shortened(name: str) -> str:
    return name if len(name) <= MAX_NAME_LENGTH else name[: MAX_NAME_LENGTH - 1] + "…"
