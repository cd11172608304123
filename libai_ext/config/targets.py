"""What a config may call: every ``_target_`` and the keys beside it, checked before any call."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
from typing import Any, Iterable, Iterator

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from libai_ext.config.names import did_you_mean
from libai_ext.errors import ConfigError

# Where the classes and functions live that a config given as text may name: what recipes need.
_RECIPES = re.compile(
    r"oneflow\.nn\.optimizer\.adamw"
    r"|libai_ext\.data\.(auto_augment|dataset|mixup|random_erasing|sources|transforms)"
    r"|libai_ext\.(engine\.graph|layers\.drop_path|optim\.(lars|param_groups|schedule))"
    r"|projects\.\w+\.(tasks|modeling\.(archs|masking)|evaluation\.evaluators)"
)
# Packages of the user's own.
_added: list[str] = []


def allow(package: str) -> None:
    """Let configs given as text call what ``package`` defines, too.

    For a person to ask for, on the command line: no file may.

    Raises:
        ConfigError: there is no such package.
    """
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise ConfigError(f"--allow-targets {package}: there is no such package")
    _added.append(package)


def _allowed(module: str) -> bool:
    return bool(_RECIPES.fullmatch(module)) or any(
        f"{module}.".startswith(f"{package}.") for package in _added
    )


def calls(node, key: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Every node with a ``_target_`` and its dotted key, references followed, as ``instantiate``
    does."""
    for place, value in _nodes(node, key):
        if isinstance(value, DictConfig) and "_target_" in value:
            yield place, value


def _nodes(node, key: str) -> Iterator[tuple[str, Any]]:
    yield key, node
    if isinstance(node, DictConfig):
        names: Iterable = list(node)
    elif isinstance(node, ListConfig):
        names = range(len(node))
    else:
        return
    for name in names:
        yield from _nodes(node[name], f"{key}.{name}" if key else str(name))


def check_targets(cfg: DictConfig | ListConfig) -> None:
    """Refuse targets, given as text, that a config has no business to call, and texts that would
    be interpolations if they were read again.

    Raises:
        ConfigError: not in an allowed module, not defined there, or not there at all.
    """
    try:
        nodes = list(_nodes(cfg, cfg._get_full_key(None) if OmegaConf.is_config(cfg) else ""))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise ConfigError("the config's references do not end") from None
    for key, value in nodes:
        if isinstance(value, str) and "${" in value:
            raise ConfigError(f"{key} comes to {value!r}, which would be resolved again")
        if not isinstance(value, DictConfig) or "_target_" not in value:
            continue
        where = f"{key}._target_" if key else "_target_"
        if isinstance(value["_target_"], str):
            _locate(value["_target_"], where)
        elif not callable(value["_target_"]):
            raise ConfigError(f"{where} must name a class or a function")


def check_arguments(cfg: DictConfig) -> None:
    """Compare the keys beside each ``_target_`` with the parameters of what it names.

    Raises:
        ConfigError: a key that the target does not take.
    """
    for key, node in calls(cfg):
        known = parameters(node, key)
        if any(p.kind is p.VAR_KEYWORD for p in known.values()):
            continue
        for name in map(str, node):
            if name != "_target_" and name not in known:
                raise ConfigError(
                    f"unknown config key '{key}.{name}'{did_you_mean(name, known, key)} "
                    f"({_found(node, key).__qualname__} takes {', '.join(known)})"
                )


def parameters(node: DictConfig, key: str) -> dict[str, inspect.Parameter]:
    """What the target of ``node`` takes; one that passes keywords on takes those of the class that
    it is annotated to return."""
    found = _found(node, key)
    signature = inspect.signature(found)
    known = dict(signature.parameters)
    rest = [name for name, p in known.items() if p.kind is p.VAR_KEYWORD]
    made = getattr(inspect.getmodule(found), str(signature.return_annotation), None)
    if rest and inspect.isclass(made):
        del known[rest[0]]
        known.update(inspect.signature(made).parameters)
    return known


def _found(node: DictConfig, key: str) -> Any:
    target = node["_target_"]
    return _locate(target, f"{key}._target_") if isinstance(target, str) else target


def _locate(path: str, key: str) -> Any:
    module, _, name = path.rpartition(".")
    refused = ConfigError(
        f"{key} '{path}' is not among what a config may call: the classes and functions of the "
        "recipes; what is your own is added by --allow-targets PACKAGE"
    )
    if not _allowed(module) or name.startswith("_"):
        raise refused
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise ConfigError(f"{key} '{path}' does not exist")
    # Modules import others: what is reached through one must be defined in an allowed one, too.
    defined = getattr(found, "__module__", None) or ""
    if not (inspect.isclass(found) or inspect.isfunction(found)) or not _allowed(defined):
        raise refused
    return found
