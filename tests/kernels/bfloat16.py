"""A model of products of bfloat16 in NumPy, sums in float64."""

from __future__ import annotations

import numpy as np


def rounded(values: np.ndarray) -> np.ndarray:
    """float32 to the nearest bfloat16 (ties to even), as float32; subnormal numbers to zeros."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    up = bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)
    upper = np.where(np.isnan(values), bits | 0x400000, up.astype(np.uint32)) & 0xFFFF0000
    subnormal = (bits & 0x7F800000) == 0
    return np.where(subnormal, bits & 0x80000000, upper).astype(np.uint32).view(np.float32)


def product(a: np.ndarray, b: np.ndarray, alpha: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """``alpha * a @ b`` with both factors rounded, and how far float32 sums may be from it.

    The bound is that of any order of summation: (k + 2) 2^-24 of the sum of the magnitudes, and
    what is lost where sums below the smallest normal number become zero.
    """
    with np.errstate(all="ignore"):
        left = rounded(np.float32(alpha) * np.asarray(a, np.float32)).astype(np.float64)
        right = rounded(b).astype(np.float64)
        size = np.abs(np.nan_to_num(left, posinf=0, neginf=0)) @ np.abs(
            np.nan_to_num(right, posinf=0, neginf=0)
        )
        k = left.shape[-1]
        return left @ right, (k + 2) * (2.0**-24 * size + 2.0**-126)


def assert_product(actual: np.ndarray, a, b, alpha: float = 1.0, addend=0.0) -> None:
    """``actual`` is ``alpha * a @ b + addend``, within the bound; NaN and infinity where there are
    some in the model."""
    expected, bound = product(a, b, alpha)
    expected, bound = expected + addend, bound + 2.0**-23 * np.abs(addend)
    assert actual.shape == expected.shape
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(actual[~finite], expected[~finite])
    assert np.all(np.abs(actual[finite].astype(np.float64) - expected[finite]) <= bound[finite])
