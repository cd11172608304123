"""Config values that are computed from others: once, after all overrides."""

from __future__ import annotations

import math
import os
import re
from typing import Iterable, Mapping

from omegaconf import DictConfig, OmegaConf

from libai_ext.data.sampler import GlobalOrder
from libai_ext.errors import ConfigError
from libai_ext.placement import device_type

SIZES = ("data_parallel_size", "tensor_parallel_size", "pipeline_parallel_size")
_MICRO = "train.train_micro_batch_size"
# A key has an effect only if the other one is unset.
_REPLACED_BY = {
    "train.train_epoch": "train.train_iter",
    "train.warmup_epoch": "train.warmup_iter",
    "train.base_lr": "optim.lr",
    _MICRO: "train.global_batch_size",
    "train.evaluation.eval_period": "train.evaluation.eval_epoch",
    "train.checkpointer.period": "train.checkpointer.epoch",
}
_EVALUATOR_PERIOD = re.compile(r"^(train\.evaluation\.evals\.[^.]+\.)period$")


def refuse_ineffective(cfg: DictConfig, assignments: Iterable[str]) -> None:
    """Refuse an override without effect: a key that takes precedence is set.

    Args:
        cfg: after overrides and :func:`derive_layout`, before batch and schedule are derived.

    Raises:
        ConfigError: names both keys.
    """
    for assignment in assignments:
        key, _, value = assignment.partition("=")
        winner = _REPLACED_BY.get(key) or _EVALUATOR_PERIOD.sub(r"\1epoch", key)
        if winner == key or value == "null" or OmegaConf.select(cfg, winner) is None:
            continue
        if key != _MICRO or cfg.train.global_batch_size != _global_batch(cfg):
            raise ConfigError(
                f"{assignment} has no effect while {winner}={OmegaConf.select(cfg, winner)} is "
                f"set: leave it out, or add {winner}=null"
            )


def _global_batch(cfg: DictConfig) -> int:
    """Micro batch x accumulation x data-parallel size."""
    train = cfg.train
    steps = train.num_accumulation_steps or 1
    return train.train_micro_batch_size * steps * train.dist.data_parallel_size


def derive_layout(cfg: DictConfig) -> None:
    """Compute the one parallel size that is unset from the number of processes.

    :func:`libai_ext.engine.layout.fit_layout` checks the result.

    Raises:
        ConfigError: more than one is unset.
    """
    layout = cfg.train.dist
    unset = [name for name in SIZES if layout[name] is None]
    if len(unset) > 1:
        raise ConfigError(f"train.dist: only one size may be unset, not {' and '.join(unset)}")
    for name in unset:
        others = math.prod(layout[other] for other in SIZES if other != name)
        layout[name] = max(1, int(os.environ.get("WORLD_SIZE", 1)) // max(1, others))


def derive_mode(cfg: DictConfig, recorded: bool | None) -> list[str]:
    """Choose graph or eager mode if ``graph.enabled`` is unset.

    On CPU, OneFlow 0.9.0's graphs are slower than eager mode, and compiling one takes over ten
    seconds for ViT-B/16. Without native kernels they take twice the memory.

    Args:
        cfg: after :func:`derive_layout`.
        recorded: ``graph.enabled`` of the checkpoint that the run continues; None: it continues
            none.

    Returns:
        A sentence with the reason; none if the mode is set.
    """
    if cfg.graph.get("enabled") is not None:
        return []
    if recorded is None:
        cfg.graph.enabled, reason = _best_mode(cfg.train)
    else:
        cfg.graph.enabled, reason = recorded, "that of the checkpoint"
    mode = "graph" if cfg.graph.enabled else "eager"
    return [f"{mode} mode, since graph.enabled is unset: {reason}"]


def _best_mode(train: DictConfig) -> tuple[bool, str]:
    """Whether a graph is better, and why."""
    if device_type() == "cuda":
        return True, "the faster one on a GPU"
    for name in ("activation_checkpoint", "zero_optimization"):
        if train[name].enabled:
            return True, f"train.{name} needs a graph"
    if train.dist.pipeline_parallel_size > 1 and (train.num_accumulation_steps or 1) > 1:
        return True, "only in a graph do pipeline stages work at the same time"
    return False, "on CPU it is mostly faster than a graph, and compiles nothing"


def batch_problem(train: DictConfig) -> str | None:
    """The problem if the global batch cannot be divided evenly, else None."""
    ranks, steps = train.dist.data_parallel_size, train.num_accumulation_steps or 1
    if train.global_batch_size is None or train.global_batch_size % (steps * ranks) == 0:
        return None
    return (
        f"train.global_batch_size {train.global_batch_size} is not divisible by "
        f"train.num_accumulation_steps {steps} x data-parallel size {ranks}"
    )


def derive_batch(cfg: DictConfig) -> None:
    """Compute micro batch, accumulation, global batch and learning rate from each other.

    Raises:
        ConfigError: the sizes do not multiply, or no learning rate is set.
    """
    train = cfg.train
    ranks = train.dist.data_parallel_size
    steps = train.num_accumulation_steps or 1
    if train.global_batch_size is None:
        if train.train_micro_batch_size is None:
            raise ConfigError("set train.train_micro_batch_size or train.global_batch_size")
        train.global_batch_size = _global_batch(cfg)
    elif batch_problem(train):
        raise ConfigError(batch_problem(train))
    train.num_accumulation_steps = steps
    train.train_micro_batch_size = train.global_batch_size // (steps * ranks)
    if cfg.optim.lr is None:
        if train.base_lr is None:
            raise ConfigError("set train.base_lr (lr = base_lr x global batch / 256) or optim.lr")
        cfg.optim.lr = train.base_lr * train.global_batch_size / 256


def derive_best(
    cfg: DictConfig, directions: Mapping[str, str], others: Mapping[str, str] | None = None
) -> None:
    """Set the better direction of ``train.evaluation.eval_metric``.

    Args:
        directions: "max" or "min" for each result of the task's evaluation.
        others: the same for the results of ``train.evaluation.evals``.

    Raises:
        ConfigError: the metric is not a result, or ``eval_mode`` is the wrong direction.
    """
    evaluation = cfg.train.evaluation
    metric, mode = evaluation.eval_metric, evaluation.eval_mode
    if metric is None:
        return
    if cfg.train.ema.enabled:
        directions = {**directions, **{f"ema_{name}": way for name, way in directions.items()}}
    directions = {**directions, **(others or {})}
    if metric not in directions:
        raise ConfigError(
            f"train.evaluation.eval_metric {metric!r} is not one of the results: "
            f"{', '.join(directions)}"
        )
    better = directions[metric]
    if mode not in (None, better):
        raise ConfigError(
            f"train.evaluation.eval_mode={mode} would keep the worst model: the {better}imum of "
            f"{metric} is best; leave eval_mode unset"
        )
    evaluation.eval_mode = better


def refuse_unmeasured(cfg: DictConfig, assignments: Iterable[str]) -> None:
    """Refuse an override of the task's evaluation while that is off. A recipe may set such keys.

    Args:
        cfg: after :func:`derive_best`.

    Raises:
        ConfigError: names the key.
    """
    evaluation = cfg.train.evaluation
    if evaluation.enabled:
        return
    dead = ["eval_period", "eval_epoch"]
    if "/" not in (evaluation.eval_metric or ""):  # else it is an evaluator's result
        dead += ["eval_metric", "eval_mode"]
    for assignment in assignments:
        key, _, value = assignment.partition("=")
        if value != "null" and key in [f"train.evaluation.{name}" for name in dead]:
            raise ConfigError(
                f"{assignment} has no effect while train.evaluation.enabled=False: leave it out, "
                "or add train.evaluation.enabled=True"
            )


def derive_schedule(cfg: DictConfig, order: GlobalOrder) -> None:
    """Convert epochs to iterations of the data set.

    Raises:
        ConfigError: the length of the run is not given.
    """
    train = cfg.train
    if train.train_iter is None:
        if train.train_epoch is None:
            raise ConfigError("set train.train_epoch or train.train_iter")
        train.train_iter = order.iterations(train.train_epoch)
    if train.warmup_iter is None:
        train.warmup_iter = order.iterations(train.warmup_epoch)
    if train.evaluation.eval_epoch is not None:
        train.evaluation.eval_period = order.iterations(train.evaluation.eval_epoch)
    if train.checkpointer.epoch is not None:
        train.checkpointer.period = order.iterations(train.checkpointer.epoch)
    train.scheduler.max_iter = train.train_iter
    train.scheduler.warmup_iter = train.warmup_iter
