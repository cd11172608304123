"""Compares the config of a resumed run with its checkpoint, key by key."""

from __future__ import annotations

import json
import logging
from typing import Any, Sized

from libai.config.lazy import _convert_target_to_string
from omegaconf import DictConfig, OmegaConf

from libai_ext.data.fingerprint import fingerprint
from libai_ext.errors import ConfigError

logger = logging.getLogger(__name__)

# Everything that determines samples, augmentation, model and steps. Not included: the layout, how
# the global batch is split, paths, logging.
_NODES = ("task._target_", "model", "optim", "train.scheduler", "train.ema", "dataloader.train")
_VALUES = (
    "train.global_batch_size",
    "train.train_iter",
    "train.warmup_iter",
    "train.seed",
    "train.epoch_remainder",
    "train.shard_window",
    "graph.enabled",
)
_DATA = "training data"
# What a run that extends another one may change.
SCHEDULE = ("train.train_iter", "train.warmup_iter", "train.scheduler.", "optim.lr")
_FREE = (
    "num_workers",
    "source.roots",
    "source.download",
    "source.cache_dir",
    "source.cache_gib",
    "source.max_bad_share",
    "target.weights",
    # Computed from train.train_iter and train.warmup_iter.
    "scheduler.max_iter",
    "scheduler.warmup_iter",
)


def settings(cfg: DictConfig, dataset: Sized | None) -> dict[str, Any]:
    """The values that each checkpoint stores, as in JSON.

    Args:
        cfg: resolved, after values are derived.
        dataset: the training data set; None: evaluation alone.
    """
    flat: dict[str, Any] = {"training samples": dataset and len(dataset)}
    flat[_DATA] = fingerprint(getattr(dataset, "source", None))
    for key in _VALUES:
        flat[key] = OmegaConf.select(cfg, key)
    for key in _NODES:
        node = OmegaConf.select(cfg, key)
        if node is not None:
            plain = OmegaConf.is_config(node)
            _flatten(key, OmegaConf.to_container(node, resolve=True) if plain else node, flat)
    return json.loads(json.dumps(flat))


def _flatten(key: str, value: Any, flat: dict[str, Any]) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            _flatten(f"{key}.{name}", item, flat)
    elif isinstance(value, (list, tuple)) and any(isinstance(item, dict) for item in value):
        for number, item in enumerate(value):
            _flatten(f"{key}.{number}", item, flat)
    elif not key.endswith(_FREE) and value is not None:
        # A Python config has classes and functions, a YAML one their names.
        flat[key] = _convert_target_to_string(value) if callable(value) else value


def check(
    saved: dict[str, Any],
    present: dict[str, Any],
    path: str,
    prefix: str = "",
    free: tuple[str, ...] = (),
) -> list[str]:
    """Compare the settings of checkpoint ``path`` with those of a config.

    Args:
        prefix: compare only keys with it.
        free: beginnings of keys that may differ.

    Returns:
        A sentence for each key that may differ and does.

    Raises:
        ConfigError: they differ; each key is named with both values.
    """
    keys = [key for key in {**saved, **present} if key.startswith(prefix) and key != _DATA]
    differing = {
        key: f"{key}: {saved.get(key, 'unset')} in the checkpoint, "
        f"{present.get(key, 'unset')} in the config"
        for key in keys
        if saved.get(key) != present.get(key)
    }
    wrong = [text for key, text in differing.items() if not key.startswith(free)]
    if not wrong:
        _compare_data(saved.get(_DATA), present.get(_DATA), path)
        return list(differing.values())
    lines = "".join(f"\n  {text}" for text in wrong)
    raise ConfigError(
        f"the config contradicts {path}:{lines}\n"
        "Set these keys as in the checkpoint. For more epochs or another learning rate, set "
        f"another train.output_dir and train.extend_from={path}; for another model or other data, "
        f"train.load_weight={path}"
    )


def _compare_data(saved: str | None, present: str | None, path: str) -> None:
    """Compare fingerprints, if both are known."""
    if saved and present and saved != present:
        logger.warning(
            f"the training data differ from those of {path}: as many samples, but other names, "
            "sizes or classes. If they are the same images in the same order, packed or encoded "
            "anew, ignore this; if not, stop the run and set data.train"
        )
