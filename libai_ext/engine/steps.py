"""Optimizer steps in eager and in graph mode, and their results."""

from __future__ import annotations

import logging
import math
from typing import Any, Callable

import numpy as np
import oneflow as flow
from libai.utils import distributed as dist
from oneflow.framework.check_point_v2 import _broadcast_py_object

from libai_ext.engine import metric_names
from libai_ext.engine.nonfinite import NonFiniteMonitor, gradient_norms, is_finite
from libai_ext.engine.precision import scales_loss
from libai_ext.layers.batch_norm import running_statistics
from libai_ext.optim.lr_scale import scaled
from libai_ext.placement import device_type

logger = logging.getLogger(__name__)

# First steps, which are not timed: they compile graphs and start data workers.
WARM_UP = 3
# Most steps that a GPU may be behind the host: the batches of all are in its memory.
MAX_QUEUED = 8


class Steps:
    """Base class of eager and graph mode.

    Attributes:
        taken: optimizer steps since the start of the run.
        skipped: whether the last step is known to be skipped.
        queued: number of steps whose results are not read yet.
        loss_scale: factor of the next step's loss in the backward pass.
    """

    def __init__(self, trainer, monitor: NonFiniteMonitor):
        self.trainer = trainer
        self.monitor = monitor
        self.taken = 0
        self.skipped = False
        self.loss_scale = 1.0

    @property
    def queued(self) -> int:
        return 0

    def run(self) -> None:
        """Take one optimizer step."""
        raise NotImplementedError

    def flush(self) -> None:
        """Wait for the queued steps, and read their results."""

    def state_dict(self) -> dict[str, float]:
        """State of a resumed run, besides the optimizer and the schedule."""
        return {"faults": self.monitor.faults}

    def load_state_dict(self, state: dict[str, float], taken: int) -> None:
        """
        Args:
            state: empty for a checkpoint of version 0.1.0.
            taken: optimizer steps of the checkpoint.
        """
        self.taken = taken
        self.monitor.faults = int(state.get("faults", 0))


class EagerSteps(Steps):
    """Forward, backward and optimizer, op by op. It skips a step whose loss or gradients are not
    finite, and takes back what its forward pass changed."""

    def run(self) -> None:
        trainer = self.trainer
        count = trainer.cfg.train.num_accumulation_steps
        total: dict[str, flow.Tensor] = {}
        before = [(buffer, buffer.clone()) for buffer in running_statistics(trainer.model)]
        for _ in range(count):
            losses = trainer.model(**trainer.next_batch())
            losses = {name: loss / count for name, loss in losses.items()}
            sum(losses.values()).backward()
            for name, loss in losses.items():
                total[name] = total[name] + loss.detach() if name in total else loss.detach()
        norms = gradient_norms(trainer.model)
        values = {name: float(read([loss])[0]) for name, loss in total.items()}
        self.skipped = not (is_finite(values) and is_finite(norms))
        if self.skipped:
            for buffer, value in before:
                buffer.copy_(value)
            self.monitor.report(trainer.iter, [values], 1, norms=norms)
        else:
            self._update(norms)
            trainer.means.add(metric_names.TRAINING_LOSS, sum(values.values()))
        # Zeros would have to be written, and added to the next gradients.
        trainer.optimizer.zero_grad(set_to_none=True)

    def _update(self, norms: dict[str, float]) -> None:
        optimizer = self.trainer.optimizer
        if self.trainer.cfg.optim.params.get("clip_grad_max_norm") is not None:
            optimizer.clip_grad()
        with scaled(optimizer):
            optimizer.step()
        self.taken += 1
        self.trainer.means.add(metric_names.GRADIENT_NORM, math.hypot(*norms.values()))


class GraphSteps(Steps):
    """Steps of a training graph, whose optimizer skips those with non-finite gradients.

    A GPU works on queued steps while the host continues. Their losses stay on the device until a
    logging step reads all of them; to learn late of a skipped step does no harm. On the CPU every
    step is read, since that is free. Queued steps count as taken.
    """

    def __init__(self, trainer, monitor: NonFiniteMonitor):
        super().__init__(trainer, monitor)
        self.deferred = device_type() == "cuda"
        self.amp = trainer.cfg.train.amp
        self.scales = scales_loss(trainer.cfg.train)
        if self.scales:
            self.loss_scale = float(self.amp.init_scale)
        self.good = 0
        self._pending: list[dict[str, flow.Tensor]] = []

    def run(self) -> None:
        trainer = self.trainer
        batch = trainer.next_batch()
        losses = trainer.graph_train(**batch)
        self._pending.append({name: _mean(loss.detach()) for name, loss in losses.items()})
        self.taken += 1
        self.skipped = False
        if not self.deferred:
            self._read(batch)
        elif trainer.flush_due():
            self.flush()
        elif self.queued % MAX_QUEUED == 0:
            trainer.graph_train.wait()

    @property
    def queued(self) -> int:
        return len(self._pending)

    def flush(self) -> None:
        if self.queued:
            self._read(None)

    def state_dict(self) -> dict[str, float]:
        scaler = {"loss_scale": self.loss_scale, "good": self.good} if self.scales else {}
        return {**super().state_dict(), **scaler}

    def load_state_dict(self, state: dict[str, float], taken: int) -> None:
        super().load_state_dict(state, taken)
        if self.scales:
            self.loss_scale = state.get("loss_scale", self.loss_scale)
            self.good = int(state.get("good", 0))
            if self.loss_scale < self.amp.min_scale:
                logger.warning(
                    f"the loss scale of the checkpoint, {self.loss_scale:g}, is below "
                    f"train.amp.min_scale {self.amp.min_scale:g}: until it has grown, each "
                    "overflow is a fault"
                )

    def _read(self, batch: dict | None) -> None:
        steps, self._pending = self._pending, []
        columns = {name: read([step[name] for step in steps]).tolist() for name in steps[0]}
        losses = [dict(zip(columns, row)) for row in zip(*columns.values())]
        taken, *scaler = _from_rank(0, self.trainer.graph_train.counters)
        skipped = self.taken - taken
        faults = max(
            sum(not is_finite(step) for step in losses),
            skipped - self._max_overflows(len(steps) - skipped),
        )
        self.taken = taken
        self.loss_scale, self.good = scaler
        self.skipped = skipped == len(steps)
        if faults:
            norms = None if batch is None else self._eager_norms(batch)
            self.monitor.report(self.trainer.iter, losses, faults, norms=norms)
        if not faults or len(steps) > 1:
            for step in filter(is_finite, losses):
                self.trainer.means.add(metric_names.TRAINING_LOSS, sum(step.values()))

    def _max_overflows(self, good: int) -> int:
        """Most steps that the loss scaler may skip before the scale is below the minimum. It halves
        the scale at each, and doubles it after ``growth_interval`` good steps. It knows nothing of
        the minimum: after a fault that is allowed, the scale is below it."""
        if not self.scales:
            return 0
        growths = (self.good + good) // self.amp.growth_interval
        return max(0, math.ceil(math.log2(self.loss_scale / self.amp.min_scale)) + growths)

    def _eager_norms(self, batch: dict) -> dict[str, float]:
        """Gradient norms of the step that the graph skipped; its weights are unchanged."""
        trainer = self.trainer
        # First drop the placeholders that building the graph left as gradients.
        loss = sum(trainer.model(**batch).values())
        trainer.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norms = gradient_norms(trainer.model)
        trainer.optimizer.zero_grad(set_to_none=True)
        return norms


def _mean(loss: flow.Tensor) -> flow.Tensor:
    """Mean over micro-batches. A single value is returned as it is: to take its mean would gather
    it from the ranks at once."""
    return loss.mean() if loss.ndim else loss


def read(scalars: list[flow.Tensor]) -> np.ndarray:
    """Read global tensors of one element and one placement: an array on every rank; waits."""
    stacked = flow.stack(scalars)
    whole = stacked.to_global(sbp=[flow.sbp.broadcast] * len(stacked.sbp))
    holder = int(whole.placement.ranks.flatten()[0])
    return _from_rank(holder, lambda: whole.to_local().numpy())


def _from_rank(rank: int, ask: Callable[[], Any]) -> Any:
    """The value of ``ask()`` on one rank, on every rank."""
    answer = ask() if dist.get_rank() == rank else None
    return _broadcast_py_object(answer, rank) if dist.get_world_size() > 1 else answer
