"""Cost model of a training step under a layout: memory, communication, pipeline bubble, time.

Nothing is run. Ranks are ordered as in the engine, [pipeline, data, tensor]: the ranks of a
tensor-parallel group are neighbours. Assumptions:

- Memory is that of projects/MAE/parallel/memory.py.
- A gradient is all-reduced once per step over the data-parallel ranks. Tensor parallelism
  all-reduces the tokens four times per layer and micro-batch. A stage sends tokens to the next one
  and receives their gradients.
- With m micro-batches, a step takes m + p - 1 turns of the slowest stage. Backward takes twice the
  operations of forward. Nothing overlaps.
"""

from __future__ import annotations

from typing import Iterator, NamedTuple, Sequence

from libai_ext.engine.stages import balance
from projects.MAE.parallel.costs import Layer
from projects.MAE.parallel.memory import (
    WORKSPACE,
    Memory,
    Training,
    fullest,
    groups_of,
    held,
    stage_memory,
)


class Machine(NamedTuple):
    """Bytes, bytes per second and operations per second."""

    devices: int
    memory: float
    node_size: int
    link_in_node: float
    link_between_nodes: float
    speed: float


class Plan(NamedTuple):
    data: int
    tensor: int
    pipeline: int
    stages: list
    # True if training would choose other stages by itself.
    by_hand: bool
    memory: Memory
    # Bytes that a device sends per step, for each kind of parallelism.
    sent: dict
    bubble: float
    seconds: float


def plans(layers: Sequence[Layer], machine: Machine, training: Training) -> list[Plan]:
    """Every layout that divides evenly and fits into memory, fastest first."""
    found = []
    for data, tensor, pipeline in _sizes(machine.devices):
        if not fits_evenly(layers, machine, training, data, tensor, pipeline):
            continue
        plan = evaluate(layers, machine, training, data, tensor, pipeline)
        if plan is not None:
            found.append(plan)
    return sorted(found, key=lambda plan: (plan.seconds, sum(plan.memory)))


def _sizes(devices: int) -> Iterator[tuple[int, int, int]]:
    for tensor in (n for n in range(1, devices + 1) if devices % n == 0):
        rest = devices // tensor
        for pipeline in (n for n in range(1, rest + 1) if rest % n == 0):
            yield rest // pipeline, tensor, pipeline


def fits_evenly(layers, machine, training, data: int, tensor: int, pipeline: int) -> bool:
    """Whether training accepts the layout, and no tensor-parallel group spans several nodes."""
    return (
        training.batch % (data * training.accumulation) == 0
        and not (training.zero and data == 1)
        and pipeline <= len(layers)
        and tensor <= machine.node_size
        and not any(x % tensor for y in set(layers) for x in (y.heads, y.width, y.hidden))
    )


def evaluate(layers, machine, training, data: int, tensor: int, pipeline: int) -> Plan | None:
    """A plan; None if no cut of the pipeline fits into memory."""
    operations = [layer.operations for layer in layers]
    stages, by_hand = balance(operations, pipeline), False
    memory = fullest(layers, training, data, tensor, stages)
    if sum(memory) > machine.memory:
        # Each layer counts as if it were the first stage: at least its share of any stage.
        later: list[list] = [[]] * (pipeline - 1)
        sizes = [stage_memory([[x], *later], 0, training, data, tensor).graph for x in layers]
        try:
            stages, by_hand = balance(operations, pipeline, sizes, machine.memory - WORKSPACE), True
        except ValueError:
            return None
        memory = fullest(layers, training, data, tensor, stages)
        if sum(memory) > machine.memory:
            return None
    groups = groups_of(layers, stages)
    sent = _sent(groups, training, data, tensor)
    links = _links(machine, data, tensor)
    turn = max(sum(layer.operations for layer in group) for group in groups)
    passes = 4 if training.checkpointing else 3
    micro = training.batch // (data * training.accumulation)
    compute = passes * turn * micro / tensor / machine.speed
    turns = training.accumulation + pipeline - 1
    seconds = turns * (compute + sent["tensor"] / training.accumulation / links["tensor"])
    seconds += sent["data"] / links["data"] + sent["pipeline"] / links["pipeline"]
    bubble = (pipeline - 1) / turns
    return Plan(data, tensor, pipeline, stages, by_hand, memory, sent, bubble, seconds)


def _sent(groups, training: Training, data: int, tensor: int) -> dict:
    width, samples = training.width, training.batch // data
    parameters = max(held(group, tensor) for group in groups)
    tokens = max(sum(layer.tokens * layer.width for layer in group) for group in groups)
    ends = [group[-1].tokens * group[-1].width for group in groups[:-1]]
    return {
        "data": _all_reduce(data) * width * parameters,
        "tensor": _all_reduce(tensor) * 4 * width * tokens * samples,
        "pipeline": 2 * width * max(ends, default=0) * samples,
    }


def _all_reduce(ranks: int) -> float:
    """What one rank of a ring sends, as a multiple of the tensor's size."""
    return 2 * (ranks - 1) / ranks


def _links(machine: Machine, data: int, tensor: int) -> dict:
    """Speed of the slowest link that each kind of parallelism uses."""

    def link(span: int) -> float:
        return machine.link_in_node if span <= machine.node_size else machine.link_between_nodes

    return {"tensor": link(tensor), "data": link(data * tensor), "pipeline": link(machine.devices)}
