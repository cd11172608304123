"""Divides a sequence of layers into pipeline stages."""

from __future__ import annotations

from typing import Sequence


def balance(
    costs: Sequence[float],
    stages: int,
    sizes: Sequence[float] | None = None,
    limit: float = float("inf"),
) -> list[int]:
    """Stage of each layer, with the smallest possible cost of the most expensive stage, which
    determines the speed of a pipeline.

    Args:
        costs: cost of each layer, in order.
        stages: number of contiguous groups, each with at least one layer.
        sizes: memory of each layer; a stage may hold at most ``limit``.

    Returns:
        LiBai's ``custom_pipeline_stage_id``: a stage number for each layer.

    Raises:
        ValueError: fewer layers than stages, or no division within the limit.
    """
    count = len(costs)
    cost_up_to, size_up_to = _running(costs), _running(sizes or [0.0] * count)
    # best[n]: (largest stage, where its last stage starts) for the first n layers.
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}
    for _ in range(stages):
        reached = {}
        for end in range(1, count + 1):
            options = [
                (max(largest, cost_up_to[end] - cost_up_to[start]), starts + [start])
                for start, (largest, starts) in best.items()
                if start < end and size_up_to[end] - size_up_to[start] <= limit
            ]
            if options:
                reached[end] = min(options)
        best = reached
    if count not in best:
        raise ValueError(f"{count} layers cannot be divided into {stages} stages of size {limit}")
    starts = best[count][1]
    return [sum(layer >= start for start in starts) - 1 for layer in range(count)]


def _running(values: Sequence[float]) -> list[float]:
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return sums
