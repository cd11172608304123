"""Fixed 2-D sine-cosine position tables (MAE, appendix A.1; the official code's layout)."""

from __future__ import annotations

import numpy as np


def sincos_pos_embed(grid: tuple[int, int], dim: int) -> np.ndarray:
    """Position table of a patch grid with a zero row for the class token.

    Half of the channels encode the column, then half the row, each as sines then cosines of
    ``position / 10000 ** (i / (dim / 4))``.

    Args:
        grid: (rows, columns).
        dim: channels, a multiple of 4.

    Returns:
        float32 [1, 1 + rows * columns, dim].
    """
    if dim % 4:
        raise ValueError(f"a 2-D sine-cosine table needs a dim divisible by 4, got {dim}")
    rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    omega = 10000.0 ** -(np.arange(dim // 4) / (dim / 4.0))
    halves = []
    for axis in (columns, rows):
        angle = axis.reshape(-1, 1) * omega
        halves += [np.sin(angle), np.cos(angle)]
    table = np.concatenate(halves, axis=1)
    return np.concatenate([np.zeros((1, dim)), table])[None].astype(np.float32)
