"""What pictures show of normalised values."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from projects.MAE.pictures.panels import as_picture

VALUES = np.random.default_rng(0).normal(size=(2, 4, 4, 5))


def test_colours_and_grey():
    data = SimpleNamespace(mode="RGB", mean=[0.5, 0.4, 0.3], std=[0.3, 0.2, 0.1])
    expected = np.clip(VALUES[..., :3] * data.std + data.mean, 0, 1)
    np.testing.assert_array_equal(as_picture(VALUES[..., :3], data), expected)
    grey = SimpleNamespace(mode="L", mean=[0.5], std=[0.3])
    expected = np.clip(VALUES[..., :1] * 0.3 + 0.5, 0, 1)
    np.testing.assert_array_equal(as_picture(VALUES[..., :1], grey), expected)


def test_three_or_one_of_many_channels():
    """Two deviations below the mean are black, two above it white."""
    data = SimpleNamespace(mode=5, mean=[9.0] * 5, std=[7.0] * 5)
    shades = np.clip((VALUES + 2) / 4, 0, 1)
    for channels, shown in ((None, [0, 1, 2]), ([4, 0, 3], [4, 0, 3]), ([3], [3])):
        found = as_picture(VALUES, data, channels)
        np.testing.assert_allclose(found, shades[..., shown], atol=1e-12)
    np.testing.assert_allclose(as_picture(VALUES[..., :2], data), shades[..., :1], atol=1e-12)
