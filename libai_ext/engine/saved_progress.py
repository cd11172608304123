"""Checks the parts of a checkpoint's ``progress.json`` that a run continues with."""

from __future__ import annotations

from typing import Any, Mapping

from libai_ext.checkpoint.checkpointer import PROGRESS
from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.config.rule_types import Rule, each, number, text, whole

_GROUP = Rule("a group of values", lambda value: isinstance(value, dict), unset=True)
_NAMES = Rule(
    "a list of texts",
    lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    unset=True,
)
# ``unset``: older versions did not save it.
_PARTS = {
    "iteration": whole(0),
    "settings": _GROUP,
    "steps": _GROUP,
    "since_last_line": _GROUP,
    "unevaluated": _NAMES,
    "best": Rule(f"{_GROUP.words} or null", lambda v: v is None or _GROUP.holds(v), unset=True),
}
_STEPS = {
    "faults": number(0, unset=True),
    "good": number(0, unset=True),
    "loss_scale": number(0, unset=True, above=True),
}
_BEST = {"metric": text(), "value": number()}


def check_progress(progress: Mapping[str, Any], path: str) -> None:
    """Refuse a part with another form than a run saves.

    Args:
        path: the checkpoint.

    Raises:
        CheckpointError: names the file and the key.
    """
    _check(progress, _PARTS, path)
    _check(progress.get("steps", {}), _STEPS, path, "steps.")
    if progress.get("best") is not None:
        _check(progress["best"], _BEST, path, "best.")
    values = progress.get("since_last_line", {})
    _check(values, dict.fromkeys(values, each(number())), path, "since_last_line.")


def _check(
    values: Mapping[str, Any], rules: Mapping[str, Rule], path: str, prefix: str = ""
) -> None:
    for key, rule in rules.items():
        if not (rule.unset and key not in values or rule.holds(values.get(key))):
            raise CheckpointError(
                f"{path}/{PROGRESS}: {prefix}{key} is not {rule.words}: resume from another "
                "checkpoint"
            )
