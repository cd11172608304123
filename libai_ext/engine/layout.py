"""Checks a parallel layout before the model is built, and divides the pipeline into stages."""

from __future__ import annotations

import os
from typing import Callable, Sequence

from omegaconf import DictConfig

from libai_ext.engine.derive import SIZES, batch_problem
from libai_ext.engine.precision import cpu_problem, scales_loss
from libai_ext.engine.stages import balance
from libai_ext.errors import ConfigError
from libai_ext.placement import device_type


def fit_layout(
    cfg: DictConfig, layer_costs: Sequence[float], model_problems: Callable[[], list[str]]
) -> None:
    """Check the layout, and set ``train.dist.custom_pipeline_stage_id`` if it is unset.

    Args:
        layer_costs: cost of each layer that can be a pipeline stage of its own.
        model_problems: returns the model's objections to a layout, a sentence each.

    Raises:
        ConfigError: lists all problems.
    """
    layout = cfg.train.dist
    problems = [
        f"{name} is {layout[name]!r}: give a whole number of 1 or more"
        for name in SIZES
        if not isinstance(layout[name], int) or layout[name] < 1
    ]
    if not problems:
        problems = _process_problems(layout) + model_problems()
        problems += [problem for problem in (batch_problem(cfg.train),) if problem]
        problems += _stage_problems(layout, len(layer_costs))
    problems += _engine_problems(cfg)
    if problems:
        raise ConfigError("the layout does not fit:" + "".join(f"\n  - {p}" for p in problems))
    if layout.custom_pipeline_stage_id is None:
        layout.custom_pipeline_stage_id = balance(layer_costs, layout.pipeline_parallel_size)


def _process_problems(layout: DictConfig) -> list[str]:
    world = int(os.environ.get("WORLD_SIZE", 1))
    data, tensor, pipeline = (layout[name] for name in SIZES)
    if data * tensor * pipeline == world:
        return []
    return [
        f"data {data} x tensor {tensor} x pipeline {pipeline} = {data * tensor * pipeline} "
        f"processes, but {world} are running"
    ]


def _stage_problems(layout: DictConfig, layers: int) -> list[str]:
    stages, given = layout.pipeline_parallel_size, layout.custom_pipeline_stage_id
    if layers < stages:
        return [f"pipeline_parallel_size {stages} is more than the model's {layers} layers"]
    if given is None:
        return []
    if len(given) != layers:
        return [f"custom_pipeline_stage_id names {len(given)} layers, the model has {layers}"]
    if list(given) != sorted(given) or set(given) != set(range(stages)):
        return [
            f"custom_pipeline_stage_id {list(given)} must rise from 0 to {stages - 1} without a "
            f"gap, for pipeline_parallel_size {stages}; null balances the stages by cost"
        ]
    return []


def _engine_problems(cfg: DictConfig) -> list[str]:
    train, problems = cfg.train, []
    zero, amp = train.zero_optimization.enabled, train.amp.enabled
    if device_type() == "cpu":
        if zero:
            problems.append(
                "train.zero_optimization: OneFlow aborts when it shards the optimizer on CPU; "
                "set tensor_parallel_size or pipeline_parallel_size to save memory there"
            )
        problem = cpu_problem() if amp else None
        if problem:
            problems.append(
                f"train.amp: on CPU it means bfloat16 products, which {problem}; set "
                "train.amp.enabled=false for float32"
            )
    elif zero and train.dist.data_parallel_size == 1:
        problems.append(
            "train.zero_optimization: it shards over data-parallel processes, and "
            "data_parallel_size is 1; set train.zero_optimization.enabled=false"
        )
    if amp and train.amp.min_scale > train.amp.init_scale:
        problems.append(
            f"train.amp.min_scale {train.amp.min_scale:g} is above train.amp.init_scale "
            f"{train.amp.init_scale:g}, where the scale starts; lower it"
        )
    if not cfg.graph.enabled:
        problems += [
            f"{key}: OneFlow supports it in graphs only; set graph.enabled=true"
            for key, on in (
                ("train.zero_optimization", zero),
                ("train.amp", scales_loss(train)),
                ("train.activation_checkpoint", train.activation_checkpoint.enabled),
            )
            if on
        ]
    return problems
