"""Memory use of a run, and advice for a device that is out of memory."""

from __future__ import annotations

import oneflow as flow
import psutil
from libai.utils import distributed as dist
from omegaconf import DictConfig

from libai_ext import device
from libai_ext.compat.placements import placement
from libai_ext.placement import device_type


def memory_gib() -> float:
    """Memory in use: of the GPU by all processes, or without one by this process alone (not its
    data workers). The engine never frees memory of a GPU, so there it is also the peak.
    """
    if device_type() == "cuda":
        return device.used_gib()
    return psutil.Process().memory_info().rss / 2**30


def max_memory() -> str:
    """Text: the largest :func:`memory_gib` of all ranks; all ranks must call it."""
    world = dist.get_world_size()
    mine = [0.0] * world
    mine[dist.get_rank()] = memory_gib()
    # On the CPU: the GPU may be full.
    everyone = placement("cpu", list(range(world)))
    shares = flow.tensor(mine).to_global(placement=everyone, sbp=flow.sbp.partial_sum)
    used = shares.to_global(sbp=flow.sbp.broadcast).to_local().numpy()
    gpu = device.current()
    text = f"{used.max():.2f} GiB"
    if gpu.type == "cuda":
        text += f" of the GPU's {gpu.total_gib:.1f}"
    return text + (f", on rank {used.argmax()} (the maximum)" if world > 1 else "")


def out_of_memory(cfg: DictConfig) -> str:
    """Advice for a GPU that is out of memory: which one, and what to change."""
    train, gpu = cfg.train, device.current()
    micro, steps = train.train_micro_batch_size, train.num_accumulation_steps
    ways = [gpu.in_use()] if gpu.in_use() else []
    if (micro or 1) > 1:  # None in an evaluation
        parts = next(n for n in range(2, micro + 1) if micro % n == 0)
        ways.append(
            f"train.train_micro_batch_size={micro // parts} with train.num_accumulation_steps="
            f"{steps * parts} (now {micro} and {steps}): the same step in smaller micro-batches"
        )
    ways.append(
        f"in an evaluation, train.test_micro_batch_size below {train.test_micro_batch_size}"
    )
    graph = "" if cfg.graph.enabled else "graph.enabled=true "  # both keys need it
    ways += [
        f"{graph}{key}=true"
        for key in ("train.activation_checkpoint.enabled", "train.amp.enabled")
        if not train[key.split(".")[1]].enabled
    ]
    ways.append("more GPUs, or another layout (train.dist.*): tools/plan.py lists what fits")
    head = f"rank {dist.get_rank()}, {gpu.label()}, {gpu.free()} at the start. What helps:"
    return "\n  - ".join([head, *ways])
