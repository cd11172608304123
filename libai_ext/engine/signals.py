"""Saves a checkpoint after a stop signal, at the same iteration on every rank."""

from __future__ import annotations

import logging
import os
import signal

import oneflow as flow
from libai.engine.trainer import HookBase
from libai.utils import distributed as dist

from libai_ext.launch.exit_report import SAVED_ON_SIGNAL, launched
from libai_ext.launch.stop_signals import RepeatedSignal, stop_signals

logger = logging.getLogger(__name__)


class SaveOnSignal(HookBase):
    """Save after the iteration in which any rank received a signal, and exit with status 75.

    Later signals have no effect, with one exception: without a launcher, a repeated signal ends the
    process at once. A launcher forwards its first signal, which may reach the ranks twice, and ends
    them itself.

    Ranks receive a signal at different times, so they sum up a flag after each step. The sum is
    read one step later, when it has arrived, so that nobody waits for it.
    """

    def __init__(self, checkpointer):
        self.checkpointer = checkpointer
        self.received: int | None = None
        self.pending: flow.Tensor | None = None
        self.previous: dict = {}

    def before_train(self) -> None:
        self.main_process = os.getpid()
        self.repeated_signal = RepeatedSignal()
        self.previous = {number: signal.signal(number, self._receive) for number in stop_signals()}

    def after_step(self) -> None:
        iteration = self.trainer.iter
        if not self._any_signalled() or iteration + 1 >= self.trainer.max_iter:
            return
        self.checkpointer.save(f"model_{iteration:07d}", iteration)
        self.checkpointer.finish()
        logger.warning(
            f"ended by a signal after {iteration + 1} iterations; --resume continues from there"
        )
        raise SystemExit(SAVED_ON_SIGNAL)

    def after_train(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _receive(self, number, frame) -> None:
        if os.getpid() != self.main_process:
            # A data worker, which is signalled with its rank: it ends when the rank does.
            return
        if self.repeated_signal.add(number) and not launched():
            os._exit(128 + number)
        self.received = number

    def _any_signalled(self) -> bool:
        """Whether any rank had a signal by the end of the step before; with one process, by now."""
        if dist.get_world_size() == 1:
            return self.received is not None
        arrived, self.pending = self.pending, flow.tensor([float(self.received is not None)])
        flow.comm.all_reduce(self.pending)
        return arrived is not None and bool(arrived.numpy()[0])
