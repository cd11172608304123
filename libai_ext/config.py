"""Lazy configs: load, share, override, dump. LiBai's LazyConfig with safe YAML and strict keys."""

from __future__ import annotations

import copy
import difflib
from pathlib import Path
from typing import Iterable

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from libai.config import LazyConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from libai_ext.errors import ConfigError

_HERE = Path(__file__).resolve().parent


def load(path: str) -> DictConfig:
    """Read a ``.py`` lazy config or a ``.yaml`` dump of one.

    LiBai reads YAML with the unsafe loader, which runs code; this one does not.

    Raises:
        ConfigError: no such file, or not a config.
    """
    if not Path(path).is_file():
        raise ConfigError(f"config file {path} does not exist")
    if path.endswith(".py"):
        return LazyConfig.load(path)
    if not path.endswith((".yaml", ".yml")):
        raise ConfigError(f"config file {path} must end in .py, .yaml or .yml")
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"config file {path} is not plain YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"config file {path} must hold a mapping at its top")
    return OmegaConf.create(content, flags={"allow_objects": True})


def get_config(name: str) -> DictConfig:
    """A fresh copy of a shared node, for example ``get_config("common/train.py").train``.

    The folder ``configs`` lies beside the package in a checkout, inside it when installed.
    """
    for folder in (_HERE / "configs", _HERE.parent / "configs"):
        if (folder / name).is_file():
            return load(str(folder / name))
    raise ConfigError(f"there is no shared config {name}")


def override(cfg: DictConfig, assignments: Iterable[str]) -> DictConfig:
    """Apply ``key=value`` strings in place; every key must exist already.

    Raises:
        ConfigError: not an assignment, or a key that is not there (the nearest one is named).
    """
    for assignment in assignments:
        try:
            parsed = OverridesParser.create().parse_override(assignment)
            key, value = parsed.key_or_group, parsed.value()
        except HydraException:
            raise ConfigError(f"'{assignment}' is not of the form key=value") from None
        if parsed.is_delete() or parsed.is_add():
            raise ConfigError(f"'{assignment}': keys can be set, not added or deleted")
        if key not in set(keys_of(cfg)):
            raise ConfigError(f"unknown config key '{key}'{_nearest(key, keys_of(cfg))}")
        OmegaConf.update(cfg, key, value, merge=False)
    return cfg


def keys_of(cfg, prefix: str = "") -> list[str]:
    """All dotted keys of a config, inner nodes and list positions included."""
    if isinstance(cfg, ListConfig):
        names = range(len(cfg))
    elif isinstance(cfg, DictConfig):
        names = list(cfg.keys())
    else:
        return []
    keys = []
    for name in names:
        key = f"{prefix}{name}"
        # _get_node: an interpolation is a key like any other, whatever it points to.
        keys += [key] + keys_of(cfg._get_node(name), key + ".")
    return keys


def _nearest(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    same_name = [k for k in known if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    candidates = same_name[:1] or close
    return f": did you mean '{candidates[0]}'?" if candidates else "; see --print-config"


def dump(cfg: DictConfig) -> str:
    """The resolved config as plain YAML that :func:`load` reads back."""
    return yaml.safe_dump(_plain(cfg), sort_keys=False, default_flow_style=None, width=100)


def _plain(node):
    if isinstance(node, DictConfig):
        return {key: _plain(node[key]) for key in node}
    if isinstance(node, (ListConfig, list, tuple)):
        return [_plain(item) for item in node]
    if node is None or isinstance(node, (bool, int, float, str)):
        return node
    if callable(node):
        return f"{node.__module__}.{node.__qualname__}"
    return repr(node)


def fresh(node):
    """A deep copy to be instantiated, so that the objects built never enter the config."""
    return copy.deepcopy(node)
