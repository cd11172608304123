"""What a model's tensors show: its sizes, and the grid of its position table."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

import numpy as np

from projects.MAE.modeling.pos_embed import sincos_pos_embed
from projects.MAE.modeling.sizes import ARCHS, PUBLISHED
from projects.MAE.weights.names import split_number

# Allowed error of a sine-cosine table that was stored with 8 bits of mantissa.
_SINCOS_ERROR = 0.01
_MAX_PATCHES = 1 << 14


def sizes_of(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Sizes by the config's keys; those that the tensors do not show are left out.

    Args:
        shapes: our name -> shape.
    """
    sizes: dict[str, Any] = {}
    patch = shapes.get("patch_embed.proj.weight", ())
    if len(patch) == 4:
        sizes.update(embed_dim=patch[0], in_chans=patch[1], patch_size=patch[2])
    token = shapes.get("mask_token", ())
    if token:
        sizes["decoder_embed_dim"] = token[-1]
    for key, blocks in (("depth", "blocks"), ("decoder_depth", "decoder_blocks")):
        count = _depth(shapes, blocks)
        if count:
            sizes[key] = count
    hidden = shapes.get("blocks.0.mlp.dense_h_to_4h.bias", ())
    if len(hidden) == 1 and sizes.get("embed_dim"):
        sizes["mlp_ratio"] = hidden[0] / sizes["embed_dim"]
    head = shapes.get("head.bias", ())
    if len(head) == 1:
        sizes["num_classes"] = head[0]
        sizes["pooling"] = "mean" if "fc_norm.weight" in shapes else "cls"
        sizes["batch_norm"] = "head_norm.running_mean" in shapes
    return sizes


def patches_of(shapes: Mapping[str, Sequence[int]]) -> int | None:
    """Number of patches in the position table; its first row is the class token's."""
    shape = shapes.get("pos_embed", ())
    return shape[1] - 1 if len(shape) == 3 and 1 < shape[1] <= _MAX_PATCHES else None


def _depth(shapes: Mapping[str, Sequence[int]], blocks: str) -> int:
    return len({split_number(name)[1] for name in shapes if name.startswith(f"{blocks}.")})


def grids(patches: int) -> list[tuple[int, int]]:
    """Every (rows, columns) with this number of patches."""
    return [(rows, patches // rows) for rows in range(1, patches + 1) if patches % rows == 0]


def grid_of_table(
    table: np.ndarray, sizes: Mapping[str, Any], patches: int
) -> tuple[tuple[int, int], str] | None:
    """(rows, columns) of a position table whose grid no file gives, and how it was found.

    The sines and cosines of an untrained table show its grid, unless it is a square: code for
    squares only writes a square's table for any grid (Union14M's files hold 16 x 16 for 8 x 32
    patches). In that case the sizes of a published model are tried first.

    Args:
        table: [1, 1 + patches, D].

    Returns:
        None if nothing shows it.
    """
    seen = _sincos_grid(table, patches)
    if seen is not None and seen[0] != seen[1]:
        return seen, "by the sines and cosines in its position table"
    for name in PUBLISHED:
        arch = ARCHS[name]
        height, width = arch["img_size"]
        grid = height // arch["patch_size"], width // arch["patch_size"]
        sized = all(arch[key] == sizes.get(key) for key in ("embed_dim", "depth", "patch_size"))
        if sized and grid[0] * grid[1] == patches:
            return grid, f"as {name} has it"
    return None if seen is None else (seen, "by the sines and cosines in its position table")


def _sincos_grid(table: np.ndarray, patches: int) -> tuple[int, int] | None:
    width = table.shape[-1]
    if width % 4 or table.shape != (1, 1 + patches, width):
        return None
    found = [
        grid
        for grid in grids(patches)
        if np.abs(table - sincos_pos_embed(grid, width)).max() < _SINCOS_ERROR
    ]
    return found[0] if len(found) == 1 else None
