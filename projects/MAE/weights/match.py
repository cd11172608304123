"""Strict matching of weights to a model: every difference is an error, or a row of the log's table.

A task says which tensors it replaces. All others must be there, with their names and shapes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Iterable, Mapping, Sequence

import numpy as np

from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.text import printable
from projects.MAE.weights.describe import DECODER
from projects.MAE.weights.mapping import SHOWN, some, with_nearest
from projects.MAE.weights.names import split_number
from projects.MAE.weights.pos_embed import interpolate
from projects.MAE.weights.shapes import grids

POSITION_TABLES = ("pos_embed", "decoder_pos_embed")

# Prefixes of the tensors that fine-tuning always initialises itself: a head of other classes may
# have the same shape. The linear probe has a `head_norm`.
NEW = ("head.", "head_norm.")

# Prefixes of those that fine-tuning drops from its starting weights, or initialises itself, by
# pooling. The class token keeps `norm`.
REPLACED = {"cls": DECODER, "mean": ("fc_norm.", "norm.", *DECODER)}

WHERE_DECODERS_ARE = (
    "The file holds an encoder only. Files with the decoder: the official repository's "
    "visualization checkpoints (mae_visualize_vit_base.pth, _large, _large_ganloss, _huge) and "
    'its "full" pre-training checkpoints (mae_pretrain_vit_*_full.pth), or facebook/vit-mae-base, '
    "-large and -huge on Hugging Face."
)


@dataclass
class Match:
    """What is done with every tensor.

    Attributes:
        weights: name -> array to load, in the shapes that the model expects.
        interpolated: names in `weights` that were resized to the model's grid.
        left_out: given names that are not used.
        fresh: names that the model initialises itself.
    """

    weights: dict[str, np.ndarray] = field(default_factory=dict)
    interpolated: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)

    def table(self) -> str:
        """A short table for the log: one line for each part of the model."""
        kept = [name for name in self.weights if name not in self.interpolated]
        rows = [("state", "part", "tensors")]
        for state, names in (
            ("loaded", kept),
            ("interpolated", self.interpolated),
            ("left out", self.left_out),
            ("freshly initialised", self.fresh),
        ):
            rows += [(state, printable(part), str(count)) for part, count in _parts(names)]
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        return "\n".join(f"{a:{widths[0]}}  {b:{widths[1]}}  {c:>7}" for a, b, c in rows)


def _parts(names: Iterable[str]) -> list[tuple[str, int]]:
    """(part of the model, number of tensors); all blocks are one part."""
    numbers: dict[str, set[str]] = {}
    counts: dict[str, int] = {}
    for name in names:
        part = name.split(".")[0]
        counts[part] = counts.get(part, 0) + 1
        numbers.setdefault(part, set()).add(split_number(name)[1])
    labels = {part: f"{part} ({len(found)})" if "" not in found else part
              for part, found in numbers.items()}  # fmt: skip
    return [(labels[part], count) for part, count in counts.items()]


def match(
    expected: Mapping[str, Sequence[int]],
    given: Mapping[str, np.ndarray],
    *,
    replaced: Sequence[str] = (),
    new: Sequence[str] = (),
    grid: tuple[int, int] | None = None,
    source_grid: tuple[int, int] | None = None,
) -> Match:
    """Fit weights to a model, strictly.

    Args:
        expected: name -> shape, of the model's parameters.
        given: name -> array, under our names.
        replaced: prefixes of names that may be missing or of a wrong shape (then the model
            initialises them), or not in the model (then they are left out); see `REPLACED`.
        new: the same for names that the model initialises even if they fit; see `NEW`.
        grid: (rows, columns) of patches in the model's input. If given, position tables of another
            grid are interpolated.
        source_grid: the same for the given tables. If it is not known, a table with the model's
            number of patches is assumed to have the model's grid.

    Raises:
        CheckpointError: names every tensor that is missing, unexpected, of a wrong shape or with
            values that are not finite; or a table has another number of patches, and its grid is
            not known.
    """
    result = Match()
    new = tuple(new)
    replaced = (*replaced, *new)
    missing, ill_shaped = [], []
    for name, shape in expected.items():
        array, shape = given.get(name), tuple(shape)
        table = name in POSITION_TABLES and getattr(array, "ndim", 0) == 3
        moved = table and grid is not None and source_grid not in (None, grid)
        taken = not moved and not name.startswith(new)
        if array is not None and array.shape == shape and taken:
            result.weights[name] = array
        elif array is not None and grid is not None and table:
            result.weights[name] = _resize(name, array, shape, grid, source_grid)
            result.interpolated.append(name)
        elif name.startswith(replaced):
            result.fresh.append(name)
            if array is not None:
                result.left_out.append(name)
        elif array is None:
            missing.append(name)
        else:
            ill_shaped.append(f"{name}: {array.shape}, the model has {shape}")
    superfluous = [name for name in given if name not in expected]
    unexpected = [name for name in superfluous if not name.startswith(replaced)]
    result.left_out += [name for name in superfluous if name.startswith(replaced)]
    _raise_if_any(missing, unexpected, ill_shaped, expected, given)
    _refuse_nonfinite(result.weights)
    return result


def _refuse_nonfinite(weights: Mapping[str, np.ndarray]) -> None:
    broken = [
        f"{name} ({np.count_nonzero(~np.isfinite(array)):,} of {array.size:,} values)"
        for name, array in weights.items()
        if not np.isfinite(array).all()
    ]
    if broken:
        raise CheckpointError(
            f"{len(broken)} tensors hold NaN or infinity: {some(broken)}; a model that starts from "
            "them learns and predicts nothing"
        )


def _resize(
    name: str,
    table: np.ndarray,
    shape: tuple[int, ...],
    grid: tuple[int, int],
    source_grid: tuple[int, int] | None,
) -> np.ndarray:
    if source_grid is None:
        raise CheckpointError(f"{name}: {unknown_grid(table.shape[1] - 1)}")
    try:
        resized = interpolate(table, source_grid, grid)
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}") from None
    if resized.shape != shape:
        raise CheckpointError(f"{name}: {table.shape} resizes to {resized.shape}, not {shape}")
    return resized


def unknown_grid(patches: int) -> str:
    """The message for a position table whose grid is needed but not known."""
    choices = ", ".join(f"[{rows},{columns}]" for rows, columns in grids(patches))
    return (
        f"the file does not say the grid of its {patches} patches: set train.load_grid (in tools "
        f"--grid, of load_encoder grid) to its rows and columns, one of {choices}"
    )


def _raise_if_any(
    missing: list[str],
    unexpected: list[str],
    ill_shaped: list[str],
    expected: Iterable[str],
    given: Iterable[str],
) -> None:
    lines = []
    for title, names, others in (
        ("missing", missing, given),
        ("unexpected", unexpected, expected),
        ("of another shape", ill_shaped, ()),
    ):
        if names:
            shown = [with_nearest(name, others) for name in names[:SHOWN]] + names[SHOWN:]
            lines.append(f"{len(names)} tensors are {title}: {some(shown)}")
    if missing and not any(name.startswith(DECODER) for name in given):
        if all(name.startswith(DECODER) for name in missing):
            lines = [f"{len(missing)} tensors of the decoder are missing. {WHERE_DECODERS_ARE}"]
        elif any(name.startswith(DECODER) for name in missing):
            lines.append(WHERE_DECODERS_ARE)
    if lines:
        raise CheckpointError("the weights do not fit the model. " + ". ".join(lines))
