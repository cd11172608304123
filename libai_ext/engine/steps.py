"""One optimizer step in eager and in graph mode, and what is known of it afterwards."""

from __future__ import annotations

import math
from typing import Any, Callable

import numpy as np
import oneflow as flow
from libai.utils import distributed as dist
from oneflow.framework.check_point_v2 import _broadcast_py_object

from libai_ext.engine import metric_names
from libai_ext.engine.nonfinite import StepGuard, gradient_norms, is_finite
from libai_ext.engine.precision import scales_loss
from libai_ext.optim.lr_scale import scaled
from libai_ext.placement import device_type

# Steps at the start whose time says nothing: graphs are compiled and data workers started.
WARM_UP = 3
# Steps that a GPU may be behind the host: the batches of all of them are in its memory.
MOST_QUEUED = 8


class Steps:
    """What eager and graph mode have in common.

    Attributes:
        taken: optimizer steps since the start of the run.
        skipped: whether the last step is known to be left out.
        queued: how many steps are not read yet.
        loss_scale: what the next step's loss is multiplied by for the backward pass.
    """

    def __init__(self, trainer, guard: StepGuard):
        self.trainer = trainer
        self.guard = guard
        self.taken = 0
        self.skipped = False
        self.loss_scale = 1.0

    @property
    def queued(self) -> int:
        return 0

    def run(self) -> None:
        """Take one optimizer step."""
        raise NotImplementedError

    def settle(self) -> None:
        """Wait for the steps that are not read yet, and account for them."""

    def state_dict(self) -> dict[str, float]:
        """What a resumed run goes on from, beside the optimizer and the schedule."""
        return {"faults": self.guard.faults}

    def load_state_dict(self, state: dict[str, float], taken: int) -> None:
        """
        Args:
            state: empty for a checkpoint of version 0.1.0.
            taken: optimizer steps in it.
        """
        self.taken = taken
        self.guard.faults = int(state.get("faults", 0))


class EagerSteps(Steps):
    """Forward, backward and the optimizer, op by op. A step with a loss or a gradient that is not
    finite is left out."""

    def run(self) -> None:
        trainer = self.trainer
        count = trainer.cfg.train.num_accumulation_steps
        total: dict[str, flow.Tensor] = {}
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
            self.guard.reject(trainer.iter, [values], 1, norms=norms)
        else:
            self._update(norms)
            trainer.means.add(metric_names.TRAINING_LOSS, sum(values.values()))
        trainer.optimizer.zero_grad()

    def _update(self, norms: dict[str, float]) -> None:
        optimizer = self.trainer.optimizer
        if self.trainer.cfg.optim.params.get("clip_grad_max_norm") is not None:
            optimizer.clip_grad()
        with scaled(optimizer):
            optimizer.step()
        self.taken += 1
        self.trainer.means.add(metric_names.GRADIENT_NORM, math.hypot(*norms.values()))


class GraphSteps(Steps):
    """Steps of a training graph, whose optimizer leaves out those with non-finite gradients.

    A GPU works on queued steps while the host goes on: their losses stay on the device until a
    logging step reads them together. Nothing is lost by learning late of a step that was left out.
    On the CPU every step is read, which takes no time there. Steps that are not read yet count as
    taken.
    """

    def __init__(self, trainer, guard: StepGuard):
        super().__init__(trainer, guard)
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
        elif trainer.reading_due():
            self.settle()
        elif self.queued % MOST_QUEUED == 0:
            trainer.graph_train.wait()

    @property
    def queued(self) -> int:
        return len(self._pending)

    def settle(self) -> None:
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

    def _read(self, batch: dict | None) -> None:
        steps, self._pending = self._pending, []
        columns = {name: read([step[name] for step in steps]).tolist() for name in steps[0]}
        losses = [dict(zip(columns, row)) for row in zip(*columns.values())]
        taken, *scaler = _from_rank(0, self.trainer.graph_train.counters)
        left_out = self.taken - taken
        faults = max(
            sum(not is_finite(step) for step in losses),
            left_out - self._overflows(len(steps) - left_out),
        )
        self.taken = taken
        self.loss_scale, self.good = scaler
        self.skipped = left_out == len(steps)
        if faults:
            norms = None if batch is None else self._eager_norms(batch)
            self.guard.reject(self.trainer.iter, losses, faults, norms=norms)
        if not faults or len(steps) > 1:
            for step in filter(is_finite, losses):
                self.trainer.means.add(metric_names.TRAINING_LOSS, sum(step.values()))

    def _overflows(self, sound: int) -> int:
        """How many steps the loss scaler may leave out on its way down to the lowest scale: it
        halves the scale each time, and doubles it after ``growth_interval`` sound steps."""
        if not self.scales:
            return 0
        growths = (self.good + sound) // self.amp.growth_interval
        return math.ceil(math.log2(self.loss_scale / self.amp.min_scale)) + growths

    def _eager_norms(self, batch: dict) -> dict[str, float]:
        """Gradient norms of the step that the graph left out: the weights are those before it."""
        trainer = self.trainer
        # What building the graph left in place of gradients goes first.
        loss = sum(trainer.model(**batch).values())
        trainer.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norms = gradient_norms(trainer.model)
        trainer.optimizer.zero_grad(set_to_none=True)
        return norms


def _mean(loss: flow.Tensor) -> flow.Tensor:
    """Of one value per micro-batch with accumulation. A single value stays in parts with the
    ranks: their mean would bring it together at once."""
    return loss.mean() if loss.ndim else loss


def read(scalars: list[flow.Tensor]) -> np.ndarray:
    """Global tensors of one element each, of one placement, as an array on every rank; waits."""
    together = flow.stack(scalars)
    whole = together.to_global(sbp=[flow.sbp.broadcast] * len(together.sbp))
    holder = int(whole.placement.ranks.flatten()[0])
    return _from_rank(holder, lambda: whole.to_local().numpy())


def _from_rank(rank: int, ask: Callable[[], Any]) -> Any:
    """What ``ask()`` gives on one rank, on every rank."""
    answer = ask() if dist.get_rank() == rank else None
    return _broadcast_py_object(answer, rank) if dist.get_world_size() > 1 else answer
