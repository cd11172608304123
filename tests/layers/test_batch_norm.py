from __future__ import annotations

import numpy as np
import pytest

from libai_ext.errors import ConfigError
from libai_ext.layers.batch_norm import BatchNorm
from libai_ext.placement import batch_sbp, to_global


def test_batch_and_running_statistics():
    norm = BatchNorm(3).train()
    mean, variance = np.zeros(3), np.ones(3)
    for seed in range(3):
        x = np.random.default_rng(seed).normal(seed, 2 + seed, size=(6, 3)).astype(np.float32)
        out = norm(to_global(x, batch_sbp())).numpy()
        expected = (x - x.mean(0)) / np.sqrt(x.astype(np.float64).var(0) + 1e-6)
        np.testing.assert_allclose(out, expected, atol=1e-5)
        mean = 0.9 * mean + 0.1 * x.mean(0)
        variance = 0.9 * variance + 0.1 * x.astype(np.float64).var(0, ddof=1)
    np.testing.assert_allclose(norm.running_mean.numpy(), mean, rtol=1e-5)
    np.testing.assert_allclose(norm.running_var.numpy(), variance, rtol=1e-5)

    out = norm.eval()(to_global(x[:1], batch_sbp())).numpy()
    np.testing.assert_allclose(out, (x[:1] - mean) / np.sqrt(variance + 1e-6), rtol=1e-4)
    assert sorted(norm.state_dict()) == ["running_mean", "running_var"]


def test_one_sample_has_no_variance():
    with pytest.raises(ConfigError, match="two samples"):
        BatchNorm(3).train()(to_global(np.ones((1, 3), np.float32), batch_sbp()))
