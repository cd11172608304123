"""What a run left in its output directory, read back without OneFlow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from libai_ext.errors import DataError


class Series(NamedTuple):
    """Values of one metric."""

    iterations: list[int]
    values: list[float]


def read_metrics(run: str) -> dict[str, Series]:
    """``metrics.jsonl`` by name of the metric; a last line that was cut off is left out.

    Raises:
        DataError: there is no such file, nothing in it, or something else.
    """
    path = Path(run, "metrics.jsonl")
    if not path.is_file():
        raise DataError(f"{run} is no output directory of a run: it has no metrics.jsonl")
    series: dict[str, Series] = {}
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            iteration = row.pop("iteration")
        except (ValueError, KeyError, AttributeError, TypeError):
            if number == len(lines):
                break
            raise DataError(f"{path}, line {number}: not a line of metrics") from None
        for name, value in row.items():
            own = series.setdefault(name, Series([], []))
            own.iterations.append(iteration)
            own.values.append(value)
    if not series:
        raise DataError(f"{path} holds no metrics yet: the run has not reached a logging step")
    return series
