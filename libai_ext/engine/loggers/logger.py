"""The contract of a logger, and those of a config."""

from __future__ import annotations

import importlib.util
from typing import Any, Mapping, NamedTuple

import numpy as np
from omegaconf import DictConfig

from libai_ext.config.lazy_config import fresh, instantiate
from libai_ext.errors import ConfigError


class Run(NamedTuple):
    """What a logger is told about a run.

    Attributes:
        config: resolved, of plain values.
        summary: heading -> text, as in ``environment.json``.
    """

    output_dir: str
    config: Mapping[str, Any]
    summary: Mapping[str, str]


class Record(NamedTuple):
    """What a run has to log at one step.

    Attributes:
        step: optimizer steps done, ``iteration`` of ``metrics.jsonl``; never smaller than before.
        time: in seconds since 1970.
        metrics: named as in ``metrics.jsonl``.
        pictures: uint8 [C, H, W]; C is 1 or 3.
    """

    step: int
    time: float
    metrics: dict[str, float]
    pictures: dict[str, np.ndarray]


class Logger:
    """A service that gets a run's metrics: a node of ``train.loggers``.

    :meth:`check` is called before the first step. The other methods are called from one thread, on
    rank 0, and may raise any error: training continues, and the call is repeated later.

    Args:
        enabled: whether the run uses it.

    Attributes:
        package: what it needs, imported by no other module; it is also the name of the extra.
        id_pattern: a regular expression of the ids that :meth:`open` may be given.
    """

    package = ""
    id_pattern = r"[A-Za-z0-9_-]{1,64}"

    def __init__(self, enabled: bool = False):
        self.enabled = enabled

    def check(self, key: str) -> None:
        """
        Args:
            key: of its node.

        Raises:
            ConfigError: it cannot work on this machine.
        """
        if self.package and importlib.util.find_spec(self.package) is None:
            raise ConfigError(
                f"{key} needs a package that is not installed: uv pip install '.[{self.package}]'"
            )

    def open(self, run: Run, id: str | None) -> tuple[str, int]:
        """Start a run of the service, or continue the one called ``id``.

        Returns:
            Its id, and the last step that it has, 0 for none.
        """
        raise NotImplementedError

    def log(self, record: Record) -> None:
        """Send a record. It is given again if this fails."""
        raise NotImplementedError

    def close(self, finished: bool) -> None:
        """End the run.

        Args:
            finished: False if it may be resumed.
        """
        raise NotImplementedError


def build_loggers(cfg: DictConfig) -> dict[str, Logger]:
    """The enabled loggers of ``train.loggers``, by name.

    Raises:
        ConfigError: one cannot work on this machine.
    """
    nodes = cfg.train.get("loggers") or {}
    enabled = [name for name, node in nodes.items() if node is not None and node.get("enabled")]
    built = {name: instantiate(fresh(nodes[name])) for name in enabled}
    for name, logger in built.items():
        logger.check(f"train.loggers.{name}")
    return built
