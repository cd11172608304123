"""What a config may call: checks every ``_target_`` and its arguments before any call."""

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

# Modules whose classes and functions a text config may name: those of the recipes.
_RECIPES = re.compile(
    r"oneflow\.nn\.optimizer\.adamw"
    r"|libai_ext\.data\.(auto_augment|dataset|mixup|random_erasing|skip_unreadable|sources|transforms)"
    r"|libai_ext\.(engine\.graph|layers\.drop_path|optim\.(lars|param_groups|schedule))"
    r"|libai_ext\.engine\.loggers\.(mlflow_tracking|weights_and_biases)"
    r"|projects\.\w+\.(tasks|modeling\.(archs|masking|targets\.\w+)|evaluation\.evaluators)"
)
# The user's packages.
_added: list[str] = []


def allow(package: str) -> None:
    """Allow text configs to call what ``package`` defines. Only the command line may ask for it.

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
    """Every node with a ``_target_``, and its dotted key. It follows references, as
    ``instantiate`` does."""
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
    """Refuse targets that a text config may not call, and texts that would become interpolations if
    they were resolved again.

    Raises:
        ConfigError: the target is missing, or not defined in an allowed module.
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
    """Compare the other keys of each node with the parameters of its ``_target_``.

    Raises:
        ConfigError: the target does not take a key.
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
    """The parameters of a node's target. A target with ``**keywords`` also has those of the class
    in its return annotation."""
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
    # An allowed module may import others: the object itself must come from an allowed module, too.
    defined = getattr(found, "__module__", None) or ""
    if not (inspect.isclass(found) or inspect.isfunction(found)) or not _allowed(defined):
        raise refused
    return found
