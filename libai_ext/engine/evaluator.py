"""Evaluations of a model during training, in addition to the task's own."""

from __future__ import annotations

from typing import Mapping

from omegaconf import DictConfig

from libai_ext.config.lazy_config import fresh, instantiate


class Evaluator:
    """An evaluation with its own data and period: a node of ``train.evaluation.evals``.

    A result ``top1`` of the node ``knn`` is called ``knn/top1`` in the log, in ``metrics.jsonl``,
    in TensorBoard, and as ``train.evaluation.eval_metric``.

    Args:
        period, epoch: evaluate every so many iterations or epochs, and after the last iteration;
            both unset: never. ``epoch`` takes precedence.

    Attributes:
        metrics: whether each result is better at its "min" or "max"; None: as for the task.
    """

    metrics: Mapping[str, str] | None = None

    def __init__(self, period: int | None = None, epoch: float | None = None):
        self.period = period
        self.epoch = epoch

    def open(self, trainer) -> None:
        """Open and check the data. Called once, before the first step.

        Raises:
            ConfigError, DataError: they cannot be used.
        """

    def run(self, trainer) -> dict[str, float]:
        """Evaluate ``trainer.model`` without changing it. All ranks must call it.

        Returns:
            The results on rank 0, an empty dict elsewhere.

        Raises:
            DataUnavailable: on all ranks, if one cannot read its data for now.
        """
        raise NotImplementedError


def build_evaluators(cfg: DictConfig) -> dict[str, Evaluator]:
    """The evaluators of ``train.evaluation.evals`` that have a period, by name."""
    evaluation = cfg.train.evaluation
    evals = evaluation.get("evals") or {}
    built = {name: instantiate(fresh(node)) for name, node in evals.items() if node is not None}
    return {name: one for name, one in built.items() if one.period or one.epoch}
