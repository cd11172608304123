"""Steps with a NaN or infinite loss or gradient: they are skipped, and too many end the run."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any, Sequence

import numpy as np
import oneflow as flow
from libai.utils import distributed as dist

from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.engine.precision import scales_loss
from libai_ext.errors import UserError

logger = logging.getLogger(__name__)


class NonFiniteError(UserError):
    """The loss or the gradients of a step are not finite."""


def sum_of_squares(tensors) -> np.ndarray:
    """float64 [N], one sum for each global tensor, the same on every rank."""
    parts = []
    for tensor in tensors:
        if dist.get_rank() not in tensor.placement.ranks.flatten():
            parts.append(flow.zeros(1, device=tensor.placement.type))
            continue
        mesh = tensor.placement.ranks.shape
        copies = math.prod(size for size, sbp in zip(mesh, tensor.sbp) if sbp == flow.sbp.broadcast)
        parts.append((tensor.to_local().square().sum() / copies).float().reshape(1))
    total = flow.cat(parts).cpu()  # one copy to the host for all
    if dist.get_world_size() > 1:
        flow.comm.all_reduce(total)
    return total.numpy().astype(np.float64)


def gradient_norms(model) -> dict[str, float]:
    """L2 norm of each parameter's gradient."""
    named = [(name, p.grad.detach()) for name, p in model.named_parameters() if p.grad is not None]
    norms = np.sqrt(sum_of_squares([gradient for _, gradient in named]))
    return {name: float(norm) for (name, _), norm in zip(named, norms)}


def refuse_nonfinite(model, path: str) -> None:
    """Refuse weights with NaN or infinity. All ranks must call it.

    Raises:
        CheckpointError: names the tensors and ``path``, their file.
    """
    state = model.state_dict()
    sums = sum_of_squares([tensor.detach() for tensor in state.values()])
    broken = [name for name, value in zip(state, sums) if not math.isfinite(value)]
    if broken:
        raise CheckpointError(
            f"{path}: {len(broken)} of {len(state)} tensors hold NaN or infinity: {broken[0]}"
            + (" and others" if len(broken) > 1 else "")
        )


def is_finite(values: dict[str, float]) -> bool:
    return all(map(math.isfinite, values.values()))


class NonFiniteMonitor:
    """Reports steps that were skipped because the loss or a gradient is not finite.

    Args:
        max_faults: number of such steps that are allowed; one more ends the run.
    """

    def __init__(self, trainer, max_faults: int):
        self.trainer = trainer
        self.max_faults = max_faults
        self.faults = 0

    def report(
        self,
        iteration: int,
        losses: Sequence[dict[str, float]],
        faults: int,
        norms: dict[str, float] | None,
    ) -> None:
        """Report skipped steps.

        Args:
            iteration: the last step, counted from 0.
            losses: of the steps that were read together, up to it.
            faults: how many of them count; a loss scale that was too high is no fault.
            norms: gradient norms, if known: for one step alone.

        Raises:
            NonFiniteError: there are too many. The state without these steps is saved.
        """
        self.faults += faults
        first = iteration + 1 - len(losses)
        bad = [first + number for number, step in enumerate(losses) if not is_finite(step)]
        text = f"{_what(bad, norms)} not finite {_when(bad, faults, first, iteration)}"
        if scales_loss(self.trainer.cfg.train) and not bad:
            text += f", at the lowest loss scale ({self.trainer.steps.loss_scale:g})"
        named = bad or range(first, iteration + 1)
        report = self._report(named, losses[named[0] - first], norms)
        if self.faults <= self.max_faults:
            text += self._write(report)
            logger.warning(f"{text}; step skipped, {self.faults} of {self.max_faults} allowed")
            return
        # The state first: it is worth more.
        text += self._save(first, iteration, faults) + self._write(report)
        raise NonFiniteError(
            f"{text}. Lower the learning rate, set optim.params.clip_grad_max_norm, check the "
            "samples, or allow more such steps by train.max_nonfinite_steps"
        )

    def _report(self, iterations: Sequence[int], losses: dict[str, float], norms) -> dict[str, Any]:
        """
        Args:
            iterations: those with a loss that is not finite, else all.
            losses: of the first one.
        """
        trainer, iteration = self.trainer, iterations[0]
        keys = [key for number in iterations for key in trainer.order.batch(number)]
        return {
            "iteration": iteration,
            "lr": trainer.lr_scheduler.get_last_lr()[0],
            "loss_scale": trainer.steps.loss_scale,
            "loss_magnitudes": {name: _json(abs(loss)) for name, loss in losses.items()},
            "samples": [f"{key.epoch}:{key.index}" for key in keys],
            "gradient_norms": {name: _json(norm) for name, norm in (norms or {}).items()},
        }

    def _write(self, report: dict[str, Any]) -> str:
        """Write a report on rank 0; the end of a message that says where it is."""
        if not dist.is_main_process() or not self.trainer.keeps:
            return ""
        name = f"nonfinite_{report['iteration']:07d}.json"
        path = Path(self.trainer.cfg.train.output_dir, name)
        try:
            path.write_text(json.dumps(report, indent=1))
        except OSError as error:
            return f"; {path} could not be written: {error.strerror}"
        return f"; samples (epoch:index), lr and gradient norms are in {path}"

    def _save(self, first: int, iteration: int, faults: int) -> str:
        """If one step was read, save the state before it: a resumed run tries that step again, and
        counts its faults then. If several were read, the state includes the good ones among
        them."""
        last = iteration
        if first == iteration:
            last -= 1
            self.faults -= faults
        if last < self.trainer.start_iter or not self.trainer.keeps:
            return ""
        self.trainer.checkpointer.save(f"model_{last:07d}", last)
        try:
            self.trainer.checkpointer.finish()
        except CheckpointError as error:
            return f"; {error}"
        return f"; the state after iteration {last} is saved, without the skipped steps"


def _what(bad: Sequence[int], norms: dict[str, float] | None) -> str:
    if bad or norms is None:
        return "the loss is" if bad else "gradients are"
    wrong = sum(not math.isfinite(norm) for norm in norms.values())
    # If the loss is not reproducible, its gradients may be finite this time.
    return f"the gradients of {wrong} of {len(norms)} parameters are" if wrong else "the loss is"


def _when(bad: Sequence[int], faults: int, first: int, last: int) -> str:
    if first == last:
        return f"at iteration {last} (counted from 0)"
    if bad:
        times = f"{len(bad)} time{'s' * (len(bad) > 1)}"
        return f"at iteration {bad[0]} (counted from 0), {times} up to {last}"
    return f"at {faults} of the iterations {first} to {last} (counted from 0)"


def _json(value: float):
    return float(value) if math.isfinite(value) else str(float(value))
