"""What a value must be: the parts of :mod:`libai_ext.config.rules`, and of constructors that any
config may call. They need neither OneFlow nor OmegaConf, like the data sets that use them."""

from __future__ import annotations

import math
import sys
from typing import Any, Callable, NamedTuple, Sequence

from libai_ext.config import values
from libai_ext.errors import ConfigError


class Rule(NamedTuple):
    """A test of a value, and its description in ``words``. ``unset``: null is allowed. ``reads``
    parses the text after ``key=`` instead of Hydra's grammar."""

    words: str
    holds: Callable[[Any], bool]
    unset: bool = False
    reads: Callable[[str], Any] | None = None


# The largest number of OneFlow's and NumPy's integers, and of a seed.
LARGEST = 2**63 - 1


def whole(least: int, unset: bool = False) -> Rule:
    """A whole number of at least ``least`` that fits into 64 bits."""
    return Rule(
        f"a whole number of at least {least}",
        lambda v: isinstance(v, int) and not isinstance(v, bool) and least <= v <= LARGEST,
        unset,
    )


def number(
    least: float = -math.inf,
    most: float = math.inf,
    unset: bool = False,
    above: bool = False,
    below: bool = False,
) -> Rule:
    """A finite number in [least, most]; ``above`` excludes ``least``, ``below`` excludes
    ``most``."""
    bounds = [f"above {least:g}" if above else f"of at least {least:g}"] * (least > -math.inf)
    bounds += [f"below {most:g}" if below else f"at most {most:g}"] * (most < math.inf)

    def holds(value) -> bool:
        # A comparison is exact for an integer that is too large for a float, and false for NaN.
        largest = sys.float_info.max
        if not _is_number(value) or not max(least, -largest) <= value <= min(most, largest):
            return False
        return not (above and value == least or below and value == most)

    return Rule(f"a finite number {' and '.join(bounds)}".rstrip(), holds, unset)


def each(rule: Rule, length: int | None = None, unset: bool = False) -> Rule:
    """A list; every item follows ``rule``."""
    size = "" if length is None else f"{length} of "
    return Rule(
        f"a list: {size}{rule.words}",
        lambda v: (
            isinstance(v, Sequence)
            and not isinstance(v, str)
            and (len(v) == length if length else len(v) > 0)
            and all(rule.holds(item) for item in v)
        ),
        unset,
        values.texts if rule.reads else None,
    )


def span(rule: Rule) -> Rule:
    """The ends of a range, both of which follow ``rule``."""
    ends = each(rule, length=2)
    return Rule(f"{ends.words}, the lower first", lambda v: ends.holds(v) and v[0] <= v[1])


def one_of(*choices) -> Rule:
    return Rule(f"one of {choices}", lambda v: v in choices)


def either(first: Rule, second: Rule) -> Rule:
    return Rule(
        f"{first.words} or {second.words}",
        lambda v: first.holds(v) or second.holds(v),
        first.unset,
    )


def text(unset: bool = False) -> Rule:
    return Rule("a text", lambda v: isinstance(v, str) and bool(v), unset, values.text)


switch = Rule("true or false", lambda v: isinstance(v, bool))


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def require(owner: object, rule: Rule, **arguments: Any) -> None:
    """For constructors that any config may call.

    Args:
        owner: the object whose arguments they are.

    Raises:
        ConfigError: an argument breaks the rule; names both.
    """
    for name, value in arguments.items():
        if not rule.holds(value):
            raise ConfigError(f"{type(owner).__name__}: {name} must be {rule.words}, not {value!r}")
