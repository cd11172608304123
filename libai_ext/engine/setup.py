"""Set-up of a run after its config is resolved: watchdog, logs, layout; and its summary."""

from __future__ import annotations

import logging
import os
import sys

import oneflow as flow
from libai.utils import distributed as dist
from omegaconf import DictConfig

from libai_ext import device, kernels
from libai_ext.engine import watchdog
from libai_ext.engine.logs import set_up_logs
from libai_ext.engine.memory import out_of_memory
from libai_ext.engine.precision import choose_products, describe
from libai_ext.launch.exit_report import set_out_of_memory_advice
from libai_ext.placement import set_layout

logger = logging.getLogger(__name__)


def set_up(cfg: DictConfig, log_files: bool = True) -> None:
    """LiBai's ``default_setup`` without compilation.

    Args:
        log_files: write ``log.txt`` into the output directory, which exists.
    """
    train = cfg.train
    watchdog.start(train.watchdog.end_seconds)
    watchdog.begin("building the run")
    dist.synchronize()
    set_up_logs(train.output_dir if log_files else None)
    set_layout(train.dist)
    choose_products(train)
    _set_up_device(cfg)
    flow.boxing.nccl.set_fusion_threshold_mbytes(train.nccl_fusion_threshold_mb)
    flow.boxing.nccl.set_fusion_max_ops_num(train.nccl_fusion_max_ops)


def _set_up_device(cfg: DictConfig) -> None:
    if device.current().type == "cuda":
        set_out_of_memory_advice(out_of_memory(cfg))
    elif not kernels.sleep_in_waits():
        logger.warning("this build of OneFlow is another one: waiting threads keep cores busy")


def summary(trainer) -> dict[str, str]:
    """Summary of a run, as (heading, text) in order."""
    cfg, train = trainer.cfg, trainer.cfg.train
    layout = train.dist
    parameters = list(trainer.model.parameters())
    total = sum(p.numel() for p in parameters)
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    mode = "graph" if cfg.graph.enabled else "eager"
    return {
        **(_training_rows(trainer) if trainer.order is not None else {}),
        "model": _model(cfg.model),
        "parameters": f"{total:,}, {trainable:,} trainable",
        "layout": f"data {layout.data_parallel_size} x tensor {layout.tensor_parallel_size} x "
        f"pipeline {layout.pipeline_parallel_size}, {mode} mode",
        "pipeline stages": _stages(layout.custom_pipeline_stage_id),
        "device": device.current().describe(),
        "precision": describe(train),
        "threads": f"{os.environ['OMP_NUM_THREADS']} a process",
        "kernels": kernels.load().message,
        "output": train.output_dir,
    }


def _training_rows(trainer) -> dict[str, str]:
    train = trainer.cfg.train
    epochs = trainer.max_iter * train.global_batch_size / trainer.order.epoch_length
    shards = trainer.order.shards
    order = (
        f", in windows of {shards.window} of {len(shards.sizes):,} shards (train.shard_window)"
        if shards is not None
        else ""
    )
    return {
        "samples": f"{len(trainer.dataset):,}{order}",
        "iterations": f"{trainer.max_iter:,} ({epochs:.4g} epochs), warm-up {train.warmup_iter:,}",
        "effective batch": f"{train.global_batch_size} = micro {train.train_micro_batch_size} x "
        f"accumulation {train.num_accumulation_steps} x data parallel "
        f"{train.dist.data_parallel_size}",
        "learning rate": f"{trainer.cfg.optim.lr:.4g}",
    }


def _model(node: DictConfig) -> str:
    keys = [key for key in map(str, node) if key != "_target_" and node[key] is not None]
    return ", ".join(f"{key} {_shown(node[key])}" for key in keys)


def _shown(value) -> str:
    """A part of the model as its class and, in brackets, the part's own keys."""
    if not isinstance(value, DictConfig) or "_target_" not in value:
        return str(value)
    target = value["_target_"]
    name = target.rpartition(".")[2] if isinstance(target, str) else target.__name__
    return f"{name}({_model(value)})"


def _stages(stage_ids) -> str:
    """Layers of each stage, as ``layers 0-4 | 5-7``."""
    bounds = [stage_ids.index(stage) for stage in sorted(set(stage_ids))] + [len(stage_ids)]
    return "layers " + " | ".join(f"{a}-{b - 1}" for a, b in zip(bounds, bounds[1:]))


def log_summary(trainer) -> dict[str, str]:
    """Log and return the :func:`summary`, with warnings."""
    rows = summary(trainer)
    lines = [f"  {name:16s} {text}" for name, text in rows.items()]
    logger.info("run\n" + "\n".join(lines))
    _warn_of_gpu_in_use()
    if trainer.order is not None and trainer.cfg.train.warmup_iter >= trainer.max_iter:
        logger.warning(
            "the warm-up is as long as the run, so the rate only rises: lower train.warmup_iter"
        )
    return rows


def _warn_of_gpu_in_use() -> None:
    """Each rank prints it: only rank 0's log is shown."""
    warning = device.current().in_use()
    if warning:
        logger.warning(warning)
        if not dist.is_main_process():
            print(f"warning: {warning}", file=sys.stderr, flush=True)
