"""Evaluation over every sample exactly once, on any number of processes."""

from __future__ import annotations

from itertools import islice
from typing import Callable

import numpy as np
import oneflow as flow
from libai.evaluation.evaluator import inference_context
from libai.utils import distributed as dist

from libai_ext.engine import watchdog
from libai_ext.engine.unavailable_data import synchronized


def evaluate(
    model,
    loader,
    get_batch: Callable,
    evaluator,
    max_batches: int | None = None,
    forward: Callable | None = None,
) -> dict[str, float]:
    """Run ``model`` (module or graph) over ``loader`` and collect results with ``evaluator``.

    LiBai's loop pads the last batch on each rank, which pairs labels with wrong outputs. Here the
    padding is at the end of the global batch (:class:`EvalSampler`) and is cut off.

    Args:
        evaluator: has ``process(inputs, outputs)``, called on rank 0 with dicts of NumPy arrays
            without padding, and ``results() -> dict``.
        max_batches: None: all.
        forward: returns the outputs of a batch, in place of ``model``.

    Returns:
        The results on rank 0, an empty dict elsewhere.

    Raises:
        DataUnavailable: on all ranks, if one cannot read its data for the present.
    """
    with inference_context(model), flow.no_grad():
        watchdog.begin("the start of an evaluation")
        for number, data in enumerate(islice(synchronized(loader), max_batches)):
            watchdog.begin(f"batch {number} of an evaluation")
            inputs = get_batch(data)
            outputs = (forward or model)(**inputs)
            valid = loader.batch_sampler.valid(number)
            rows = [
                {key: on_rank_0(value)[:valid] for key, value in part.items()}
                for part in (inputs, outputs)
            ]
            if dist.is_main_process():
                evaluator.process(*rows)
    watchdog.begin("the work after an evaluation")
    return evaluator.results() if dist.is_main_process() else {}


def on_rank_0(tensor: flow.Tensor) -> np.ndarray:
    """The whole tensor on rank 0, nothing useful elsewhere; all ranks must call it."""
    first: list = [0] if tensor.placement.ranks.ndim == 1 else [[0]]
    return dist.tton(tensor, ranks=first)


class MeanOf:
    """Evaluator: mean over samples of per-sample outputs [N]."""

    def __init__(self, **names: str):
        """``names``: result name = output name."""
        self.names = names
        self.values: dict[str, list] = {name: [] for name in names}

    def process(self, inputs, outputs) -> None:
        for name, output in self.names.items():
            self.values[name].append(outputs[output])

    def results(self) -> dict[str, float]:
        return {
            name: float(np.concatenate(values).astype(np.float64).mean())
            for name, values in self.values.items()
        }
