"""What each rank is doing when a part of the run does not end; its launcher then ends the job."""

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

# Of how many of the last steps the median is taken.
_WINDOW = 100
_POLL_SECONDS = 1.0

_end_seconds = math.inf
_thread: threading.Thread | None = None


def start(end_seconds: float | None) -> None:
    """Watch this process from now on.

    Each rank watches itself: the stacks together show which one keeps the others waiting. Rank 0
    says it in the log, the others in their own log and on stderr.

    Args:
        end_seconds: what a task may take; from half of it on it is reported. None: any time.
    """
    global _end_seconds, _thread
    _end_seconds = math.inf if end_seconds is None else end_seconds
    if _thread is None:
        _thread = threading.Thread(
            target=_watch, args=(threading.get_ident(),), name="watchdog", daemon=True
        )
        _thread.start()


def begin(what: str) -> None:
    """The task before is done, another one begins."""
    deadlines.begin(what, _end_seconds / 2, _end_seconds)


class StepWatch(HookBase):
    """A step is reported when it takes ``factor`` times as long as the median of those before it,
    and at least ``min_seconds``. It is not ended before twice that time.

    To be registered first: what the other hooks do after a step is a task of its own.
    """

    def __init__(self, factor: float, min_seconds: float):
        self.factor = factor
        self.min_seconds = min_seconds
        # Seconds of a step; where steps are queued, their mean from one reading to the next.
        self.lasted: deque = deque(maxlen=_WINDOW)
        self.unread: list[float] = []
        self.steps = 0

    def before_step(self) -> None:
        what = f"iteration {self.trainer.iter}"
        self.started = time.monotonic()
        if not self.lasted:
            begin(what)
            return
        median = statistics.median(self.lasted)
        # The step that reads waits for those that are queued as well.
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
            self.lasted.append(statistics.fmean(self.unread))
        self.unread.clear()

    def after_train(self) -> None:
        begin("the end of the run")


def _watch(watched: int) -> None:
    """``watched``: the thread that is shown last."""
    said = None
    while True:
        time.sleep(_POLL_SECONDS)
        task = deadlines.current
        if task is not said and time.monotonic() - task.start > task.report:
            said = task
            _report(task, watched)


def _fate(end: float) -> str:
    if math.isinf(end):
        return "nothing is ended (train.watchdog.end_seconds)"
    return f"after {end:.0f} s the job is ended (train.watchdog.end_seconds)"


def _report(task: deadlines.Task, watched: int) -> None:
    seconds = time.monotonic() - task.start
    lines = [
        f"rank {dist.get_rank()}: {task.what} has taken {seconds:.0f} s so far{task.note}; "
        f"{_fate(task.end)}; its threads, the training last\n"
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
