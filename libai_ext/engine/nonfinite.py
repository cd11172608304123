"""Losses and gradients that are no numbers: such a step is left out, and ends the run."""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path

import numpy as np
import oneflow as flow
from libai.utils import distributed as dist

from libai_ext.errors import UserError

logger = logging.getLogger(__name__)
_TRAIN_STEP = "System-Train-TrainStep"
# So long may the counter of a step that was taken be late.
_LATE_SECONDS = 2.0


class NonFiniteError(UserError):
    """The loss or the gradients of a step are not finite."""


def sum_of_squares(tensors) -> np.ndarray:
    """Of each global tensor, the same on every rank: each sums up its own shards first."""
    parts = []
    for tensor in tensors:
        if dist.get_rank() not in tensor.placement.ranks.flatten():
            parts.append(flow.zeros(1))
            continue
        mesh = tensor.placement.ranks.shape
        copies = math.prod(size for size, sbp in zip(mesh, tensor.sbp) if sbp == flow.sbp.broadcast)
        parts.append((tensor.to_local().square().sum() / copies).float().reshape(1).cpu())
    total = flow.cat(parts)
    if dist.get_world_size() > 1:
        flow.comm.all_reduce(total)
    return total.numpy().astype(np.float64)


def gradient_norms(model) -> dict[str, float]:
    """L2 norm of each parameter's gradient."""
    named = [(name, p.grad.detach()) for name, p in model.named_parameters() if p.grad is not None]
    norms = np.sqrt(sum_of_squares([gradient for _, gradient in named]))
    return {name: float(norm) for (name, _), norm in zip(named, norms)}


def _reduced(loss: flow.Tensor) -> flow.Tensor:
    return loss.detach().to_global(sbp=[flow.sbp.broadcast] * len(loss.sbp))


class StepGuard:
    """Tells whether a step was sound, and reports one that was not.

    In eager mode the trainer asks before the optimizer's step. In graph mode the optimizer leaves
    out a step with non-finite gradients by itself (see :class:`libai_ext.engine.graph.Graph`) and
    its step counter tells afterwards.

    Args:
        max_skips: so many steps may be left out; the next one ends the run.
    """

    def __init__(self, trainer, max_skips: int):
        self.trainer = trainer
        self.max_skips = max_skips
        self.skips = 0
        self.steps_taken: float | None = None

    def sound(self, losses, norms: dict[str, float] | None = None) -> bool:
        """Whether the losses and, in eager mode, the gradients given as norms are finite; in
        graph mode, whether the optimizer took the step."""
        finite = bool(np.isfinite(sum_of_squares(map(_reduced, losses.values()))).all())
        if norms is not None:
            return finite and all(math.isfinite(norm) for norm in norms.values())
        before, deadline = self.steps_taken, time.monotonic() + _LATE_SECONDS
        self.steps_taken = self._count()
        while finite and before is not None and self.steps_taken != before + 1:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
            self.steps_taken = self._count()
        return finite

    def reject(self, losses, norms: dict[str, float]) -> None:
        """Note a step that was left out.

        Raises:
            NonFiniteError: it was one too many. The state before it is saved.
        """
        trainer, self.skips = self.trainer, self.skips + 1
        iteration = trainer.iter
        values = sum_of_squares([_reduced(loss) for loss in losses.values()])
        bad = [name for name, norm in norms.items() if not math.isfinite(norm)]
        what = (
            f"the gradients of {len(bad)} of {len(norms)} parameters are" if bad else "the loss is"
        )
        text = f"{what} not finite at iteration {iteration} (counted from 0)"
        if dist.is_main_process():
            path = Path(trainer.cfg.train.output_dir, f"nonfinite_{iteration:07d}.json")
            report = {
                "iteration": iteration,
                "lr": trainer.lr_scheduler.get_last_lr()[0],
                "loss_magnitudes": dict(zip(losses, map(_json, np.sqrt(values)))),
                "samples": [f"{key.epoch}:{key.index}" for key in trainer.order.batch(iteration)],
                "gradient_norms": {name: _json(norm) for name, norm in norms.items()},
            }
            path.write_text(json.dumps(report, indent=1))
            text += f"; samples (epoch:index), lr and gradient norms are in {path}"
        if self.skips <= self.max_skips:
            logger.warning(f"{text}; step left out, {self.skips} of {self.max_skips}")
            return
        if iteration > trainer.start_iter:
            trainer.checkpointer.save(f"model_{iteration - 1:07d}", iteration - 1)
            text += "; the state before it is saved"
        raise NonFiniteError(
            f"{text}. Lower the rate, set optim.params.clip_grad_max_norm, look at the samples, or "
            "allow for some such steps by train.max_nonfinite_steps"
        )

    def _count(self) -> int:
        """The step counter inside the training graph.

        The loss is there before the step is over, and nothing orders a read of the counter; the
        first layer's parameters, updated last, are there when it is over.
        """
        first = next(p for p in self.trainer.model.parameters() if p.requires_grad)
        first.to_local().numpy()
        graph = self.trainer.graph_train._c_nn_graph
        found = dict(zip(graph.additional_var_names, graph.additional_var_tensors))
        return round(math.sqrt(sum_of_squares([found[_TRAIN_STEP]])[0]))


def _json(value: float):
    return float(value) if math.isfinite(value) else str(float(value))
