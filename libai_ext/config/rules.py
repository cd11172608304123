"""Allowed values of config keys: one line per key."""

from __future__ import annotations

import re
from typing import Any, Iterable, Iterator, Mapping, Sequence

from omegaconf import DictConfig, ListConfig, OmegaConf

from libai_ext.config.lazy_config import dump, get_config
from libai_ext.config.names import did_you_mean
from libai_ext.config.rule_types import LARGEST, Rule, each, number, one_of, switch, text, whole
from libai_ext.config.targets import check_arguments, check_targets
from libai_ext.errors import ConfigError

RULES: Mapping[str, Rule] = {
    "train.output_dir": text(),
    "train.device": one_of("cpu", "cuda")._replace(unset=True),
    "train.seed": whole(0),
    "train.train_micro_batch_size": whole(1, unset=True),
    "train.global_batch_size": whole(1, unset=True),
    "train.num_accumulation_steps": whole(1, unset=True),
    "train.test_micro_batch_size": whole(1),
    "train.train_epoch": number(0, unset=True, above=True),
    "train.train_iter": whole(1, unset=True),
    "train.warmup_epoch": number(0),
    "train.warmup_iter": whole(0, unset=True),
    "train.base_lr": number(0, unset=True),
    "train.scheduler.min_lr": number(0),
    "train.epoch_remainder": one_of("carry", "drop"),
    "train.shard_window": whole(1, unset=True),
    "train.load_weight": text(unset=True),
    "train.load_grid": each(whole(1), length=2, unset=True),
    "train.log_period": whole(1),
    "train.extend_from": text(unset=True),
    "train.checkpointer.period": whole(1),
    "train.checkpointer.epoch": number(0, unset=True, above=True),
    "train.checkpointer.max_to_keep": whole(1),
    "train.save_on_signal": switch,
    "train.max_nonfinite_steps": whole(0),
    "train.watchdog.factor": number(1, above=True),
    "train.watchdog.min_seconds": number(0, above=True),
    "train.watchdog.end_seconds": number(0, unset=True, above=True),
    "train.evaluation.enabled": switch,
    "train.evaluation.eval_period": whole(1),
    "train.evaluation.eval_epoch": number(0, unset=True, above=True),
    "train.evaluation.eval_metric": text(unset=True),
    "train.evaluation.eval_mode": one_of("max", "min")._replace(unset=True),
    "train.loggers.wandb.project": text(unset=True),
    "train.loggers.wandb.entity": text(unset=True),
    "train.loggers.wandb.name": text(unset=True),
    "train.loggers.mlflow.tracking_uri": text(unset=True),
    "train.loggers.mlflow.experiment": text(unset=True),
    "train.loggers.mlflow.name": text(unset=True),
    "train.ema.enabled": switch,
    "train.ema.decay": number(0, 1, below=True),
    "train.amp.enabled": switch,
    "train.amp.init_scale": number(1),
    "train.amp.growth_interval": whole(1),
    "train.amp.min_scale": number(1),
    "train.activation_checkpoint.enabled": switch,
    "train.zero_optimization.enabled": switch,
    "train.zero_optimization.stage": one_of(1, 2, 3),
    "train.dist.data_parallel_size": whole(1, unset=True),
    "train.dist.tensor_parallel_size": whole(1, unset=True),
    "train.dist.pipeline_parallel_size": whole(1, unset=True),
    "train.dist.custom_pipeline_stage_id": each(whole(0), unset=True),
    "train.nccl_fusion_threshold_mb": whole(0),
    "train.nccl_fusion_max_ops": whole(0),
    "optim.lr": number(0, unset=True),
    "optim.eps": number(0, above=True),
    "optim.betas": each(number(0, 1, below=True), length=2),
    "optim.params.weight_decay": number(0),
    "optim.params.decay": number(0, 1, above=True),
    "optim.momentum": number(0, 1),
    "optim.params.clip_grad_max_norm": number(0, unset=True, above=True),
    "graph.enabled": switch._replace(unset=True),
    "dataloader.train.num_workers": whole(0, unset=True),
    "dataloader.test.num_workers": whole(0, unset=True),
}
_NODES = ("model", "optim", "graph", "train", "dataloader")
# Nodes that every run instantiates.
_CALLED = (
    "model",
    "optim",
    "optim.params",
    "train.scheduler",
    "graph.train_graph",
    "graph.eval_graph",
)


def complete(cfg: DictConfig, newer: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Add missing keys of ``train`` with their defaults: an older run's ``config.yaml`` lacks newer
    keys.

    Args:
        newer: node -> newer keys of a project's node with their defaults, added where the config
            refers to them.

    Returns:
        A sentence that names them, if there are any.
    """
    filled: list[str] = []
    if isinstance(cfg.get("train"), DictConfig):
        _fill(cfg.train, get_config("common/train.py").train, "train", filled)
    text = dump(cfg)
    for name, defaults in newer.items():
        used = {key: defaults[key] for key in defaults if f"${{{name}.{key}}}" in text}
        if isinstance(cfg.get(name), DictConfig):
            _fill(cfg[name], DictConfig(used), name, filled)
    return [f"keys that the config lacks, by default: {', '.join(filled)}"] if filled else []


def _fill(node: DictConfig, defaults: DictConfig, prefix: str, filled: list[str]) -> None:
    for name in map(str, defaults):
        inner, default = node._get_node(name), defaults._get_node(name)
        if inner is None:
            node[name] = default
            filled.append(f"{prefix}.{name}={_shown(defaults[name])}")
        elif (
            isinstance(inner, DictConfig)
            and isinstance(default, DictConfig)
            and "_target_" not in default
        ):
            _fill(inner, default, f"{prefix}.{name}", filled)


def check(
    cfg: DictConfig, rules: Mapping[str, Rule] | None = None, called: Sequence[str] = ()
) -> None:
    """Refuse a config with unknown keys or unusable values.

    Args:
        called: other nodes that a project instantiates.
        rules: of a project's own keys, added to :data:`RULES`; missing keys are not checked.

    Raises:
        ConfigError: lists all wrong values, or names the first wrong key.
    """
    for name in _NODES:
        if not isinstance(cfg.get(name), DictConfig):
            raise ConfigError(f"the config has no node '{name}'")
    check_targets(cfg)
    splits = [name for name, node in cfg.dataloader.items() if node is not None]
    evals, loggers = _named(cfg, _EVALS), _named(cfg, _LOGGERS)
    datasets = [f"dataloader.{name}.dataset" for name in splits]
    for key in (*_CALLED, *called, *datasets, *evals, *loggers):
        _check_called(cfg, key)
    _check_names(cfg.train, get_config("common/train.py").train, "train")
    check_arguments(cfg)
    _check_data(cfg)
    problems = []
    periods = {f"{key}.{name}": rule for key in evals for name, rule in _PERIODS.items()}
    switches = {f"{key}.enabled": switch for key in loggers}
    for key, rule in {**RULES, **periods, **switches, **(rules or {})}.items():
        value = OmegaConf.select(cfg, key, default=_ABSENT)
        if value is _ABSENT or (value is None and rule.unset):
            continue
        if not rule.holds(value):
            problems.append(f"{key} must be {rule.words}, not {_shown(value)}")
    if problems:
        raise ConfigError("; ".join(problems))


_ABSENT = object()
# Groups of nodes with names of the user's choice.
_EVALS = "train.evaluation.evals"
_LOGGERS = "train.loggers"
_PERIODS = {"period": whole(1, unset=True), "epoch": number(0, unset=True, above=True)}


def _named(cfg: DictConfig, group: str) -> list[str]:
    """Keys of the nodes of a group that are not null."""
    nodes = OmegaConf.select(cfg, group)
    if nodes is None:
        return []
    if not isinstance(nodes, DictConfig):
        raise ConfigError(f"{group} must be a group of keys, not {_shown(nodes)}")
    return [f"{group}.{name}" for name in map(str, nodes) if nodes[name] is not None]


def _check_called(cfg: DictConfig, key: str) -> None:
    node = cfg
    for name in key.split("."):
        node = node.get(name) if isinstance(node, DictConfig) else None
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise ConfigError(f"{key} must be a group of keys with a _target_")


def _check_data(cfg: DictConfig) -> None:
    """Refuse keys of ``data`` to which no other node refers."""
    used = set(re.findall(r"\$\{data\.(\w+)\}", " ".join(_references(cfg)))) | {"train", "test"}
    for name in cfg.get("data") or ():
        if name not in used:
            raise ConfigError(f"unknown config key 'data.{name}'{did_you_mean(name, used, 'data')}")


def _references(node) -> Iterator[str]:
    if isinstance(node, (DictConfig, ListConfig)) and not node._is_interpolation():
        names: Iterable = node if isinstance(node, DictConfig) else range(len(node))
        for name in names:
            yield from _references(node._get_node(name))
    elif node is not None and node._is_interpolation():
        yield node._value()


def _check_names(node: DictConfig, known: DictConfig, prefix: str) -> None:
    """Recursively, except nodes with a ``_target_``: see :func:`check_arguments`."""
    for name in map(str, node):
        if name not in known:
            raise ConfigError(
                f"unknown config key '{prefix}.{name}'{did_you_mean(name, known, prefix)}"
            )
        inner, model = node._get_node(name), known._get_node(name)
        if (
            f"{prefix}.{name}" not in (_EVALS, _LOGGERS)
            and isinstance(model, DictConfig)
            and "_target_" not in model
        ):
            if not isinstance(inner, DictConfig):
                raise ConfigError(
                    f"{prefix}.{name} is a group of keys: {', '.join(map(str, model))}"
                )
            _check_names(inner, model, f"{prefix}.{name}")


def _shown(value) -> str:
    if isinstance(value, int) and abs(value) > LARGEST:
        return "a number beyond 2^63"
    return repr(OmegaConf.to_container(value)) if OmegaConf.is_config(value) else repr(value)
