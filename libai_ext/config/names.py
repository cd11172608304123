"""What a key that does not exist may have meant: its name elsewhere, else the nearest spelling."""

from __future__ import annotations

import difflib
from typing import Iterable, Mapping

# Name elsewhere -> what it is here -> whose name it is.
_elsewhere: dict[str, dict[str, list[str]]] = {}


def know(whose: str, names: Mapping[str, str]) -> None:
    """Add the names of another program.

    Args:
        names: name there -> a key or an option here, or a sentence where there is neither.
    """
    for dotted, here in names.items():
        for name in {dotted, dotted.rpartition(".")[2]}:
            owners = _elsewhere.setdefault(name, {}).setdefault(here, [])
            owners.extend([whose] * (whose not in owners))


def from_elsewhere(name: str) -> str:
    """The end of a message about a key or an option of another program, empty if it is none."""
    plain = name.lstrip("-").replace("-", "_")
    found = _elsewhere.get(plain) or _elsewhere.get(plain.rpartition(".")[2])
    if not found:
        return ""
    return ": " + "; ".join(
        f"a name of {' and '.join(owners)}, " + (here if " " in here else f"here '{here}'")
        for here, owners in found.items()
    )


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of a message about an unknown key ``prefix.name`` beside ``known`` ones."""
    told = from_elsewhere(f"{prefix}.{name}" if prefix else str(name))
    if told:
        return told
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f": did you mean '{f'{prefix}.{close[0]}' if prefix else close[0]}'?" if close else ""
