"""Initial weights that do not depend on the parallel layout."""

from __future__ import annotations

import zlib
from typing import Callable

import numpy as np
import oneflow as flow
from oneflow import nn

from libai_ext.placement import broadcast_sbp

Initializer = Callable[[np.random.Generator, tuple], np.ndarray]


def no_init(tensor: flow.Tensor) -> flow.Tensor:
    """``init_method`` for LiBai layers whose weights :func:`initialize` fills later."""
    return tensor


def initialize(module: nn.Module, rule: Callable[[str, flow.Tensor], Initializer]) -> None:
    """Fill every parameter of ``module`` from a stream keyed by (engine seed, parameter name).

    The engine's own generators draw per shard, so a tensor-parallel weight would differ from
    the same weight on one process. Here each rank draws the whole tensor in NumPy and keeps
    its shard. A module that is built twice with one seed gets the same weights twice.

    Args:
        rule: gives the initializer of a parameter from its name and the parameter.
    """
    seed = flow.default_generator.initial_seed()
    with flow.no_grad():
        for name, parameter in module.named_parameters():
            rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
            assign(parameter, rule(name, parameter)(rng, tuple(parameter.shape)))


def assign(tensor: flow.Tensor, array: np.ndarray) -> None:
    """Copy an array that is the same on every rank into a global tensor, in place."""
    local = flow.from_numpy(np.array(array, dtype=np.float32))
    whole = local.to_global(placement=tensor.placement, sbp=broadcast_sbp())
    tensor.copy_(whole.to_global(sbp=tensor.sbp))


def xavier_uniform(rng: np.random.Generator, shape: tuple) -> np.ndarray:
    """Glorot & Bengio (2010), for a matrix; a convolution weight [D, C, p, p] counts as
    [D, C * p * p], as the official MAE initialises its patch projection."""
    fan_a, fan_b = shape[0], int(np.prod(shape[1:]))
    bound = np.sqrt(6.0 / (fan_a + fan_b))
    return rng.uniform(-bound, bound, shape)


def normal(std: float) -> Initializer:
    """N(0, std). The official MAE's ``trunc_normal_`` is the same in effect: it cuts at -2 and 2,
    which are 100 standard deviations at its ``std`` of 0.02."""
    return lambda rng, shape: rng.normal(0.0, std, shape)


def uniform(bound: float) -> Initializer:
    return lambda rng, shape: rng.uniform(-bound, bound, shape)


def constant(value: float) -> Initializer:
    return lambda rng, shape: np.full(shape, value)


def transformer_initializer(name: str, parameter: flow.Tensor) -> Initializer:
    """MAE's rules: tokens N(0, 0.02), biases 0, normalisation scales 1, matrices Xavier-uniform."""
    if name.endswith("token"):
        return normal(0.02)
    if name.endswith("bias"):
        return constant(0.0)
    if parameter.ndim == 1:
        return constant(1.0)
    return xavier_uniform
