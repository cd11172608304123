"""Reading the output directory of a run, without OneFlow."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

from libai_ext.engine import metric_names
from libai_ext.errors import DataError


class Series(NamedTuple):
    """Values of one metric."""

    iterations: list[int]
    values: list[float]


def read_metrics(run: str) -> dict[str, Series]:
    """Read ``metrics.jsonl``, by name of the metric (:mod:`libai_ext.engine.metric_names`). An
    incomplete last line is ignored.

    Raises:
        DataError: the file is missing, empty or not a file of metrics.
    """
    path = Path(run, "metrics.jsonl")
    if not os.path.isfile(path):
        raise DataError(f"{run} is not the output directory of a run: it has no metrics.jsonl")
    series: dict[str, Series] = {}
    lines = read_text(path).splitlines()
    for number, line in enumerate(lines, 1):
        row = metrics_of(line)
        if row is None:
            if number == len(lines):
                break
            raise DataError(f"{path}, line {number}: not a line of metrics")
        iteration = int(row.pop("iteration"))
        for name, value in row.items():
            # Version 0.1 called the loss of an evaluation "loss".
            own = series.setdefault(metric_names.for_result(name), Series([], []))
            own.iterations.append(iteration)
            own.values.append(value)
    if not series:
        raise DataError(f"{path} holds no metrics yet: the run has not reached a logging step")
    return series


def metrics_of(line: str) -> dict[str, float] | None:
    """The numbers of a line of ``metrics.jsonl``; None if it is not one."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    numbers = isinstance(row, dict) and all(type(value) in (int, float) for value in row.values())
    return row if numbers and type(row.get("iteration")) is int else None


def read_text(path: Path) -> str:
    """Read a text file; a byte that is not UTF-8 becomes ``\\xff``.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
