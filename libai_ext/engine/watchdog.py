"""Each rank reports a task that takes too long; its launcher ends the job at the deadline."""

from __future__ import annotations

import logging
import math
import statistics
import sys
import threading
import time
import traceback
from collections import deque

from libai.engine.trainer import HookBase
from libai.utils import distributed as dist

from libai_ext.engine.steps import WARM_UP
from libai_ext.launch import deadlines

logger = logging.getLogger(__name__)

# Number of last steps for the median.
_WINDOW = 100
_POLL_SECONDS = 1.0

_end_seconds = math.inf
_thread: threading.Thread | None = None


def start(end_seconds: float | None) -> None:
    """Watch this process from now on.

    Each rank watches itself: the stacks of all ranks show which one the others wait for. Rank 0
    reports to the log, the others to their own log and standard error.

    Args:
        end_seconds: time limit of a task, which is reported after half of it; None: no limit.
    """
    global _end_seconds, _thread
    _end_seconds = math.inf if end_seconds is None else end_seconds
    if _thread is None:
        _thread = threading.Thread(
            target=_watch, args=(threading.get_ident(),), name="watchdog", daemon=True
        )
        _thread.start()


def begin(what: str) -> None:
    """Start a task in place of the current one."""
    deadlines.begin(what, _end_seconds / 2, _end_seconds)


class StepWatch(HookBase):
    """Reports a step that takes longer than ``factor`` times the median of those before it, and
    longer than ``min_seconds``. The job is not ended before twice that time.

    Registered first: the work of the other hooks after a step is a task of its own.
    """

    def __init__(self, factor: float, min_seconds: float):
        self.factor = factor
        self.min_seconds = min_seconds
        # Seconds of a step; if steps are queued, their mean between two readings.
        self.durations: deque = deque(maxlen=_WINDOW)
        self.unread: list[float] = []
        self.steps = 0

    def before_step(self) -> None:
        what = f"iteration {self.trainer.iter}"
        self.started = time.monotonic()
        if not self.durations:
            begin(what)
            return
        median = statistics.median(self.durations)
        # A step that reads results also waits for the queued steps.
        report = max(self.min_seconds, self.factor * median * (len(self.unread) + 1))
        end = max(_end_seconds, 2 * report)
        deadlines.begin(what, report, end, f", the median is {median:.3g} s")

    def after_step(self) -> None:
        begin(f"the work after iteration {self.trainer.iter} (logging, evaluation, saving)")
        self.steps += 1
        self.unread.append(time.monotonic() - self.started)
        if self.trainer.steps.queued:
            return
        if self.steps > WARM_UP:
            self.durations.append(statistics.fmean(self.unread))
        self.unread.clear()

    def after_train(self) -> None:
        begin("the end of the run")


def _watch(watched: int) -> None:
    """``watched``: the thread that is reported last."""
    reported = None
    while True:
        time.sleep(_POLL_SECONDS)
        task = deadlines.current
        if task is not reported and time.monotonic() - task.start > task.report:
            reported = task
            _report(task, watched)


def _consequence(end: float) -> str:
    if math.isinf(end):
        return "the job is never ended (train.watchdog.end_seconds)"
    return f"after {end:.0f} s the job is ended (train.watchdog.end_seconds)"


def _report(task: deadlines.Task, watched: int) -> None:
    seconds = time.monotonic() - task.start
    lines = [
        f"rank {dist.get_rank()}: {task.what} has taken {seconds:.0f} s so far{task.note}; "
        f"{_consequence(task.end)}; stacks of its threads, the training last\n"
    ]
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames()
    frames.pop(threading.get_ident(), None)
    for ident in sorted(frames, key=lambda ident: ident == watched):
        lines.append(f"thread {names.get(ident, ident)}:\n")
        lines += traceback.format_stack(frames[ident])
    text = "".join(lines).rstrip()
    if not dist.is_main_process():
        print(text, file=sys.stderr, flush=True)
    logger.warning(text)
