"""What a config may call: every ``_target_`` and the keys beside it, checked before any call."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from typing import Any, Iterator

from omegaconf import DictConfig, ListConfig

from libai_ext.errors import ConfigError

# Where the classes and functions live that a config given as text may name. Modules that run
# programs, read pickles or load other configs are not among them.
_ALLOWED = re.compile(
    r"(oneflow\.(optim|nn\.optimizer|nn\.modules)"
    r"|libai\.(optim|scheduler|layers|models)"
    r"|libai_ext\.(data(?!\.download\b)|engine\.graph|layers|optim)"
    r"|projects\.\w+\.(modeling|tasks))\."
)


def calls(node, key: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Every node with a ``_target_`` and its dotted key."""
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield key, node
        names = list(node)
    elif isinstance(node, ListConfig):
        names = range(len(node))
    else:
        return
    for name in names:
        yield from calls(node._get_node(name), f"{key}.{name}" if key else str(name))


def check_targets(cfg: DictConfig) -> None:
    """Refuse targets, given as text, that a config has no business to call.

    Raises:
        ConfigError: not in an allowed package, not defined there, or not there at all.
    """
    for key, node in calls(cfg):
        if isinstance(node["_target_"], str):
            _locate(node["_target_"], key)
        elif not callable(node["_target_"]):
            raise ConfigError(f"{key}._target_ must name a class or a function")


def check_arguments(cfg: DictConfig) -> None:
    """Compare the keys beside each ``_target_`` with the parameters of what it names.

    Raises:
        ConfigError: a key that the target does not take.
    """
    for key, node in calls(cfg):
        target = node["_target_"]
        if isinstance(target, str):
            target = _locate(target, key)
        parameters = inspect.signature(target).parameters
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            continue
        for name in node:
            if name != "_target_" and name not in parameters:
                raise ConfigError(
                    f"unknown config key '{key}.{name}'{did_you_mean(name, parameters, key)} "
                    f"({target.__qualname__} takes {', '.join(parameters)})"
                )


def did_you_mean(name: str, known, prefix: str = "") -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f": did you mean '{prefix}.{close[0]}'?" if close else ""


def _locate(path: str, key: str) -> Any:
    refused = ConfigError(
        f"{key}._target_ '{path}' is not among what a config may call: optimizers, layers, "
        "models, data sets and transforms of OneFlow, LiBai and this project"
    )
    if not _ALLOWED.match(path + ".") or any(part.startswith("_") for part in path.split(".")):
        raise refused
    found = _import(path)
    if found is None:
        raise ConfigError(f"{key}._target_ '{path}' does not exist")
    defined = f"{getattr(found, '__module__', '')}."
    # Modules import others: what is reached through one must be defined in an allowed one, too.
    if not (inspect.isclass(found) or inspect.isfunction(found)) or not _ALLOWED.match(defined):
        raise refused
    return found


def _import(path: str) -> Any:
    """The object of a dotted path, None if there is none."""
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part, None)
        return found
    return None
