"""Load, share, override and dump lazy configs: LiBai's LazyConfig with safe YAML, strict keys."""

from __future__ import annotations

import copy
import sys
import traceback
from pathlib import Path
from typing import Any, Iterable, Mapping

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from libai.config import LazyConfig
from libai.config import instantiate as _instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from libai_ext.config import safe_yaml, values
from libai_ext.config.names import did_you_mean, from_elsewhere, question
from libai_ext.config.targets import check_targets, parameters
from libai_ext.errors import ConfigError, UserError
from libai_ext.text import masked

_PACKAGE = Path(__file__).resolve().parents[1]


def load(path: str) -> DictConfig:
    """Read a ``.py`` lazy config or a ``.yaml`` dump of one.

    LiBai reads YAML with the unsafe loader and resolves every interpolation: both run code. Here
    :mod:`libai_ext.config.safe_yaml` reads YAML, and :mod:`libai_ext.config.targets` decides what
    it may call.

    Raises:
        ConfigError: there is no such file, or it is not a config.
    """
    if not is_file(path):
        raise ConfigError(f"config file {path} does not exist")
    if path.endswith(".py"):
        return _load_python(path)
    if not path.endswith((".yaml", ".yml")):
        raise ConfigError(f"config file {path} must end in .py, .yaml or .yml")
    cfg = OmegaConf.create(safe_yaml.read(path), flags={"allow_objects": True})
    try:
        check_targets(cfg)
    except ConfigError as error:
        raise ConfigError(f"config file {path}: {error}") from None
    return cfg


def is_file(path: str) -> bool:
    """Whether there is a config file ``path``.

    Raises:
        ConfigError: its folder cannot be read.
    """
    try:
        return Path(path).is_file()
    except OSError as error:
        raise ConfigError(f"config file {path} cannot be read: {error.strerror}") from None


def _load_python(path: str) -> DictConfig:
    known = set(sys.modules)
    try:
        return LazyConfig.load(path)
    except UserError:
        raise
    except SyntaxError as error:
        inner = error.__cause__ if isinstance(error.__cause__, SyntaxError) else error
        raise ConfigError(f"config file {path}, line {inner.lineno}: {inner.msg}") from error
    except Exception as error:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == path or Path(frame.filename) == Path(path).resolve()
        ]
        where = f", line {lines[-1]}" if lines else ""
        raise ConfigError(f"config file {path}{where}: {type(error).__name__}: {error}") from error
    finally:
        # The next config gets its own nodes of recipes, also of those imported by their full names.
        for name in set(sys.modules) - known:
            if ".configs." in name:
                del sys.modules[name]


def get_config(name: str) -> DictConfig:
    """A fresh copy of a shared node, for example ``get_config("common/train.py").train``.

    The folder ``configs`` is next to the package in a checkout, inside it when installed.
    """
    for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs"):
        if (folder / name).is_file():
            return load(str(folder / name))
    raise ConfigError(f"there is no shared config {name}")


def override(
    cfg: DictConfig, assignments: Iterable[str], rules: Mapping[str, Any] | None = None
) -> DictConfig:
    """Apply ``key=value`` strings in place; every key must exist already.

    Args:
        rules: by key; they may say how to read its text, see :class:`libai_ext.config.rules.Rule`.

    Raises:
        ConfigError: not an assignment, a value of another type, or an unknown key (the message
            suggests one).
    """
    for assignment in assignments:
        key, sign, text = assignment.partition("=")
        if key[:1] in ("+", "~"):
            raise ConfigError(f"'{assignment}': keys can be set, not added or deleted")
        if not sign or not key:
            raise ConfigError(f"'{assignment}' is not of the form key=value, as in train.seed=1")
        if key not in set(keys_of(cfg)):
            raise ConfigError(f"unknown config key '{key}'{_nearest(key, keys_of(cfg))}")
        safe_yaml.check_texts(text, key)
        rule = (rules or {}).get(key)
        value = _read(key, text, OmegaConf.select(cfg, key), rule)
        free = isinstance(value, str) and "${" in value or value is None and _optional(cfg, key)
        # A rule that reads the text knows all types of its values.
        known = rule is not None and rule.reads is not None and rule.holds(value)
        if not (free or known):
            _check_type(key, OmegaConf.select(cfg, key), value)
        OmegaConf.update(cfg, key, value, merge=False)
    return cfg


def _read(key: str, text: str, default: Any, rule: Any) -> Any:
    """Parse the text after ``key=``."""
    reads = getattr(rule, "reads", None)
    if reads is None and isinstance(default, str):
        reads = values.text
    if reads is None and isinstance(default, ListConfig) and len(default):
        reads = values.texts if all(isinstance(item, str) for item in default) else None
    try:
        return _grammar(text) if reads is None else reads(text)
    except ConfigError as error:
        raise ConfigError(f"{key}={text}: {error}") from None


def _grammar(text: str) -> Any:
    try:
        parsed = OverridesParser.create().parse_override(f"key={text}")
        if not parsed.is_sweep_override():
            return parsed.value()
    except (HydraException, ValueError):  # ValueError: an integer of thousands of digits
        raise ConfigError(
            "not a value: write a number, true, false, null, a list as [1,2], or a text in quotes "
            "that the shell leaves, as in \"'a text'\""
        ) from None
    raise ConfigError(f"one value is read, or a list, which is written [{text}]")


def _optional(cfg: DictConfig, key: str) -> bool:
    """Whether the key is an optional argument of its ``_target_``."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    if not isinstance(node, DictConfig) or "_target_" not in node:
        return False
    parameter = parameters(node, parent).get(name)
    return parameter is not None and parameter.default is None


def _check_type(key: str, default, value) -> None:
    """Refuse a value of another type than ``default``. null, and values without a default, are
    checked by :mod:`libai_ext.config.rules`."""
    if isinstance(default, DictConfig):
        hint = from_elsewhere(key) or f", set them one by one: {', '.join(default)}"
        raise ConfigError(f"{key} is a group of keys{hint}")
    if isinstance(default, ListConfig):
        fits, words = isinstance(value, list), f"a list such as {_written(default)}"
    elif isinstance(default, bool):
        fits, words = isinstance(value, bool), "true or false"
    elif isinstance(default, (int, float)):
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        words = f"a number such as {default}"
    elif isinstance(default, str):
        fits, words = isinstance(value, str), f"a text such as {default!r}"
    else:
        return
    if not fits and value is not None:
        raise ConfigError(f"{key} must be {words}, not {value!r}")


def _written(values: ListConfig) -> str:
    return "[" + ",".join(str(item) for item in OmegaConf.to_container(values) or ()) + "]"


def keys_of(cfg, prefix: str = "") -> list[str]:
    """All dotted keys of a config, inner nodes and list positions included."""
    if isinstance(cfg, ListConfig):
        names: Iterable = range(len(cfg))
    elif isinstance(cfg, DictConfig):
        names = list(cfg.keys())
    else:
        return []
    keys = []
    for name in names:
        key = f"{prefix}{name}"
        # _get_node does not follow interpolations: they are keys like others.
        keys += [key] + keys_of(cfg._get_node(name), key + ".")
    return keys


def _nearest(key: str, known: list[str]) -> str:
    same_name = [k for k in known if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    told = from_elsewhere(key)
    best = [k for k in same_name if f"'{k}'" in told or not told]
    if best:
        return question(best[0])
    return told or did_you_mean(key, known) or "; see --print-config"


def dump(cfg: DictConfig) -> str:
    """The config as plain YAML for :func:`load`; references to other keys are kept, passwords and
    signatures in URLs are not."""
    return yaml.safe_dump(_plain(cfg), sort_keys=False, default_flow_style=None, width=100)


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The config as in :func:`dump`, with references resolved."""
    cfg = fresh(cfg)
    OmegaConf.resolve(cfg)
    return _plain(cfg)


def _plain(node):
    if isinstance(node, DictConfig):
        return {key: _referring(node, key) for key in node}
    if isinstance(node, ListConfig):
        return [_referring(node, position) for position in range(len(node))]
    if isinstance(node, (list, tuple)):
        return [_plain(item) for item in node]
    if isinstance(node, str):
        return masked(node)
    if node is None or isinstance(node, (bool, int, float)):
        return node
    if callable(node):
        return f"{node.__module__}.{node.__qualname__}"
    return repr(node)


def _referring(node, key):
    inner = node._get_node(key)
    if inner is not None and inner._is_interpolation():
        return inner._value()
    return _plain(node[key])


def fresh(node):
    """A deep copy to instantiate, so that no objects get into the config."""
    return copy.deepcopy(node)


def instantiate(node):
    """LiBai's ``instantiate``, after :func:`libai_ext.config.targets.check_targets`."""
    check_targets(node)
    return _instantiate(node)
