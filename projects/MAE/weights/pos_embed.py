"""Resize tables of position embeddings to another grid.

The formula is that of `torch.nn.functional.interpolate(mode="bicubic", align_corners=False)`, as
used by the official MAE, timm and Hugging Face: Keys' cubic convolution, no anti-aliasing, clamped
borders.
"""

from __future__ import annotations

import numpy as np

KEYS_A = -0.75
TAPS = np.arange(-1, 3)  # neighbours of a sample, relative to the one at or before it


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' kernel at distances 0 to 2, float64."""
    near = ((KEYS_A + 2) * distance - (KEYS_A + 3)) * distance**2 + 1
    far = ((KEYS_A * distance - 5 * KEYS_A) * distance + 8 * KEYS_A) * distance - 4 * KEYS_A
    return np.where(distance <= 1, near, far)


def resize_matrix(source: int, target: int) -> np.ndarray:
    """Weights [target, source], float64, that resize one axis; every row sums to 1."""
    center = (np.arange(target) + 0.5) * (source / target) - 0.5
    before = np.floor(center).astype(int)
    matrix = np.zeros((target, source))
    rows = np.arange(target)
    for tap in TAPS:
        weight = _cubic(np.abs(center - (before + tap)))
        # Several taps may use the same border sample; an indexed assignment would keep only one.
        np.add.at(matrix, (rows, np.clip(before + tap, 0, source - 1)), weight)
    return matrix


def interpolate(
    table: np.ndarray,
    source_grid: tuple[int, int],
    target_grid: tuple[int, int],
    extra_tokens: int = 1,
) -> np.ndarray:
    """Resize a table of position embeddings.

    Args:
        table: [1, extra_tokens + H * W, D], any floating type.
        source_grid: (H, W) of the table.
        target_grid: (H, W) of the result.
        extra_tokens: first rows that belong to no patch and are kept: 1 with a cls token, else 0.

    Returns:
        [1, extra_tokens + H' * W', D] of the same type; computed in float64.

    Raises:
        ValueError: the table has another number of rows than `source_grid`.
    """
    (height, width), dimension = source_grid, table.shape[-1]
    if table.shape != (1, extra_tokens + height * width, dimension):
        raise ValueError(
            f"a table of shape {table.shape} has no {height} x {width} grid "
            f"after {extra_tokens} extra tokens"
        )
    extra, patches = np.split(table, [extra_tokens], axis=1)
    grid = patches.reshape(height, width, dimension).astype(np.float64)
    grid = np.tensordot(resize_matrix(height, target_grid[0]), grid, axes=1)
    grid = np.tensordot(resize_matrix(width, target_grid[1]), grid, axes=(1, 1)).swapaxes(0, 1)
    resized = grid.reshape(1, -1, dimension).astype(table.dtype)
    return np.concatenate([extra, resized], axis=1)
