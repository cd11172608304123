"""Checks a layout before anything heavy is built, and cuts the pipeline into stages."""

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
    """Set ``train.dist.custom_pipeline_stage_id`` where it is unset.

    Args:
        layer_costs: of each layer that can be on a pipeline stage of its own.
        model_problems: gives what the model has against a layout of whole numbers, a sentence
            each.

    Raises:
        ConfigError: lists everything that does not fit.
    """
    layout = cfg.train.dist
    problems = [
        f"{name} is {layout[name]!r}: give a whole number from 1 on"
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
                "there, tensor_parallel_size or pipeline_parallel_size save memory"
            )
        problem = cpu_problem() if amp else None
        if problem:
            problems.append(
                f"train.amp: on CPU it means bfloat16 products, which {problem}; leave "
                "train.amp.enabled=false for float32"
            )
    elif zero and train.dist.data_parallel_size == 1:
        problems.append(
            "train.zero_optimization: it divides among data-parallel processes, and "
            "data_parallel_size is 1; leave train.zero_optimization.enabled=false"
        )
    if amp and train.amp.min_scale > train.amp.init_scale:
        problems.append(
            f"train.amp.min_scale {train.amp.min_scale:g} is above train.amp.init_scale "
            f"{train.amp.init_scale:g}, from which the scale goes down"
        )
    if not cfg.graph.enabled:
        problems += [
            f"{key}: OneFlow does this in graphs only; set graph.enabled=true"
            for key, on in (
                ("train.zero_optimization", zero),
                ("train.amp", scales_loss(train)),
                ("train.activation_checkpoint", train.activation_checkpoint.enabled),
            )
            if on
        ]
    return problems
