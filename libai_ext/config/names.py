"""Suggestions for unknown keys: the key here for another program's key, or the nearest spelling."""

from __future__ import annotations

import difflib
from typing import Iterable, Mapping

# Name in other programs -> key here -> the programs.
_elsewhere: dict[str, dict[str, list[str]]] = {}


def register_names(whose: str, names: Mapping[str, str]) -> None:
    """Register the key names of another program.

    Args:
        names: name there -> a key or an option here, perhaps with a comma and a note on its values,
            or a sentence that begins with "without" if neither exists.
    """
    for dotted, here in names.items():
        for name in {dotted, dotted.rpartition(".")[2]}:
            owners = _elsewhere.setdefault(name, {}).setdefault(here, [])
            owners.extend([whose] * (whose not in owners))


def from_elsewhere(name: str) -> str:
    """The end of a message about another program's key or option; empty for other names."""
    plain = name.lstrip("-").replace("-", "_")
    found = _elsewhere.get(plain) or _elsewhere.get(plain.rpartition(".")[2])
    if not found:
        return ""
    return ": " + "; ".join(
        f"a name of {' and '.join(owners)}, {_said(here, plain)}" for here, owners in found.items()
    )


def _said(here: str, asked: str) -> str:
    if here.startswith("without"):
        return here
    key, comma, note = here.partition(",")
    if key == asked:  # this message is about an unknown key
        return "the same here, but not in this config"
    return f"here '{key}'{comma}{note}"


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of a message about an unknown key ``prefix.name``; ``known`` are the others there."""
    told = from_elsewhere(f"{prefix}.{name}" if prefix else str(name))
    close = nearest(str(name), known)
    if told or close is None:
        return told
    return question(f"{prefix}.{close}" if prefix else close)


def question(name: str) -> str:
    """The end of a message about an unknown name; ``name`` was probably meant."""
    return f": did you mean '{name}'?"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name with the spelling nearest to ``name``; None if none is similar."""
    # Names from files may be long, and the time grows with the square of the length.
    close = difflib.get_close_matches(name[:120], list(known), n=1)
    return close[0] if close else None
