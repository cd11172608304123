"""Tools for comparing the native kernels, which tests/conftest.py has loaded, with NumPy."""

import numpy as np
import oneflow as flow
import pytest

from libai_ext import kernels

TOLERANCE = 2e-6  # of the largest finite value expected


@pytest.fixture(autouse=True, scope="session")
def native():
    status = kernels.load()
    assert status.loaded, f"these tests need the native kernels: {status.message}"


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def tensor():
    """Make a float32 tensor that wants a gradient."""

    def make(array, dtype=flow.float32):
        return flow.tensor(np.asarray(array), dtype=dtype, requires_grad=True)

    return make


@pytest.fixture
def assert_close():
    """Compare a result with a float64 reference: shape, NaN and infinity, and values."""

    def check(actual, expected, tolerance=TOLERANCE):
        actual = actual.numpy().astype(np.float64)
        expected = np.asarray(expected, dtype=np.float64)
        assert actual.shape == expected.shape
        finite = np.isfinite(expected)
        np.testing.assert_array_equal(actual[~finite], expected[~finite])
        if finite.any():
            scale = np.abs(expected[finite]).max()
            error = np.abs(actual[finite] - expected[finite]).max()
            assert error <= tolerance * scale, f"error {error:.2e} at scale {scale:.2e}"

    return check
