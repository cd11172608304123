"""What each rank is doing when a step does not end."""

from __future__ import annotations

import logging
import statistics
import sys
import threading
import time
import traceback
from collections import deque

from libai.engine.trainer import HookBase
from libai.utils import distributed as dist

from libai_ext.engine.steps import WARM_UP

logger = logging.getLogger(__name__)

# Of how many of the last steps the median is taken.
_WINDOW = 100
_POLL_SECONDS = 1.0


class HangReport(HookBase):
    """Say the stack of every thread, once a step, when the step takes ``factor`` times as long
    as the median of those before it, and at least ``min_seconds``. Nothing is ended.

    Each rank watches itself: the stacks together show which one keeps the others waiting. Rank 0
    says it in the log, the others in their own log and on stderr. To be registered first: the
    other hooks' work after a step (evaluation, saving) may take any time.
    """

    def __init__(self, factor: float, min_seconds: float):
        self.factor = factor
        self.min_seconds = min_seconds
        # Seconds of a step; where steps are queued, their mean from one reading to the next.
        self.lasted: deque = deque(maxlen=_WINDOW)
        self.unread: list[float] = []
        self.steps = 0
        # Iteration and start of the step that runs, seconds from which on it is stuck.
        self.step: tuple[int, float, float] | None = None
        self.ended = threading.Event()

    def before_train(self) -> None:
        self.watched = threading.get_ident()
        threading.Thread(target=self._watch, name="hang report", daemon=True).start()

    def before_step(self) -> None:
        limit = float("inf")
        if self.lasted:
            # The step that reads waits for those that are queued as well.
            expected = statistics.median(self.lasted) * (len(self.unread) + 1)
            limit = max(self.min_seconds, self.factor * expected)
        self.step = (self.trainer.iter, time.monotonic(), limit)

    def after_step(self) -> None:
        _, start, _ = self.step
        self.step = None
        self.steps += 1
        self.unread.append(time.monotonic() - start)
        if self.trainer.steps.queued:
            return
        if self.steps > WARM_UP:
            self.lasted.append(statistics.fmean(self.unread))
        self.unread.clear()

    def after_train(self) -> None:
        self.ended.set()

    def _watch(self) -> None:
        said = -1
        while not self.ended.wait(_POLL_SECONDS):
            step = self.step
            if step is None or step[0] == said:
                continue
            iteration, start, limit = step
            if time.monotonic() - start > limit:
                said = iteration
                self._report(iteration, time.monotonic() - start)

    def _report(self, iteration: int, seconds: float) -> None:
        lines = [
            f"rank {dist.get_rank()}: iteration {iteration} has taken {seconds:.0f} s so far, the "
            f"median is {statistics.median(self.lasted):.3g} s; its threads, the training last\n"
        ]
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        frames = sys._current_frames()
        frames.pop(threading.get_ident(), None)
        for ident in sorted(frames, key=lambda ident: ident == self.watched):
            lines.append(f"thread {names.get(ident, ident)}:\n")
            lines += traceback.format_stack(frames[ident])
        text = "".join(lines).rstrip()
        if not dist.is_main_process():
            print(text, file=sys.stderr, flush=True)
        logger.warning(text)
