"""Hooks that save checkpoints: periodically, at the best evaluation, and at the end."""

from __future__ import annotations

import logging
import math
from typing import Callable

from libai.engine.trainer import HookBase
from oneflow.framework.check_point_v2 import _broadcast_py_object

from libai_ext.checkpoint.checkpointer import Checkpointer
from libai_ext.engine import metric_names
from libai_ext.errors import DataUnavailable

logger = logging.getLogger(__name__)

BEST = "model_best"
FINAL = "model_final"


class Checkpointing(HookBase):
    """A checkpoint every ``period`` iterations, and ``model_final`` at the end.

    Registered last, so that the other hooks' files of an iteration are on disk before its
    checkpoint.

    Args:
        log_period: iterations between reports of a failed save.
    """

    def __init__(self, checkpointer: Checkpointer, period: int, log_period: int):
        self.checkpointer = checkpointer
        self.period = period
        self.log_period = log_period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter:
            self.checkpointer.save(FINAL, self.trainer.iter)
            self.checkpointer.finish()
        elif done % self.period == 0:
            self.checkpointer.save(f"model_{self.trainer.iter:07d}", self.trainer.iter)
        elif self.checkpointer.failure and done % self.log_period == 0:
            logger.error(f"{self.checkpointer.failure}; training continues")

    def after_train(self) -> None:
        """Called after an exception or a signal too: the process may exit after this."""
        self.checkpointer.join()


class Evaluation(HookBase):
    """Evaluate every ``period`` iterations and after the last one, and keep ``model_best``.

    LiBai's ``EvalHook`` and ``BestCheckpointer`` forget the best result when a run is resumed, and
    evaluate the last iteration after ``model_final``: a run killed in between never does. Here
    every checkpoint includes the best result, and is saved after the evaluation of its iteration.
    A best result does not count if ``model_best`` could not be written. If the data of an
    evaluation cannot be read, it is skipped and the run ends after this iteration; the last one is
    repeated when the run is resumed.

    Args:
        measure: returns the results, by name, on rank 0; all ranks call it.
        metric: the result to compare; None: keep no ``model_best``.
        mode: ``"max"`` or ``"min"``: the better direction.
        prefix: of the results' names.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        measure: Callable[[], dict[str, float]],
        period: int,
        metric: str | None = None,
        mode: str | None = None,
        prefix: str = "",
    ):
        self.checkpointer = checkpointer
        self.measure = measure
        self.period = period
        self.metric = metric
        self.mode = mode
        self.prefix = prefix

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period and done != self.trainer.max_iter:
            return
        try:
            measured = _broadcast_py_object(self.measure())
        except DataUnavailable as error:
            logger.error(f"the evaluation after {done} iterations is skipped: {error}")
            self.trainer.unavailable = error
            if done == self.trainer.max_iter:
                self.trainer.unevaluated.append(self.prefix.rstrip("/"))
            return
        results = {self.prefix + name: value for name, value in measured.items()}
        named = {metric_names.for_result(name): value for name, value in results.items()}
        self.trainer.storage.put_scalars(**named, smoothing_hint=False)
        if self.metric is not None:
            self._compare(results[self.metric])

    def _compare(self, value: float) -> None:
        iteration = self.trainer.iter
        # Only rank 0 knows whether the best model so far was written.
        if _broadcast_py_object(self._is_best(value)):
            best = {"metric": self.metric, "value": value, "iteration": iteration}
            self.checkpointer.save(BEST, iteration, is_latest=False, best=best)
            logger.info(f"best {self.metric} so far: {value:.6g}")

    def _is_best(self, value: float) -> bool:
        self.checkpointer.join()
        best = self.checkpointer.plain.get("best")
        if best is not None and best["metric"] != self.metric:  # an earlier run used another metric
            best = None
        sign = 1 if self.mode == "max" else -1
        return math.isfinite(value) and (best is None or sign * value > sign * best["value"])
