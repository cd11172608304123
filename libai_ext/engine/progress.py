"""Progress of a training run: a live bar on a terminal, lines in the log."""

from __future__ import annotations

import datetime
import logging
import os
import sys

from libai.engine.trainer import HookBase
from tqdm import tqdm

from libai_ext.engine import metric_names
from libai_ext.engine.logs import FILES_ONLY
from libai_ext.engine.retrying_writer import latest_scalars
from libai_ext.engine.writers import is_logging_step
from libai_ext.launch.exit_report import ON_TERMINAL

logger = logging.getLogger(__name__)


def position(trainer) -> str:
    """Iterations done, as ``[ 20/100]``."""
    last = trainer.max_iter
    return f"[{min(trainer.iter + 1, last):{len(str(last))}d}/{last}]"


class Progress(HookBase):
    """Logs the metrics of :class:`libai_ext.engine.run_metrics.RunMetrics` every ``period``
    iterations. On a terminal a live bar shows them, and only ``log.txt`` gets the line."""

    def __init__(self, period: int):
        self.period = period
        self.bar: tqdm | None = None

    def before_train(self) -> None:
        if sys.stderr.isatty() or ON_TERMINAL in os.environ:
            self.bar = tqdm(
                total=self.trainer.max_iter,
                initial=self.trainer.start_iter,
                unit="it",
                dynamic_ncols=True,
            )

    def after_step(self) -> None:
        if is_logging_step(self.trainer, [self.period]):
            self._write(self._text())
        if self.bar is not None:
            self.bar.update()

    def _write(self, text: str) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
        live = self.bar is not None
        logger.info(f"{position(self.trainer)} {text}{self._eta()}", extra={FILES_ONLY: live})

    def after_train(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def _text(self) -> str:
        latest = latest_scalars(self.trainer.storage)
        if metric_names.TRAINING_LOSS not in latest:
            return "step skipped"
        text = f"training loss {latest[metric_names.TRAINING_LOSS]:.4f}"
        text += f", lr {latest[metric_names.LEARNING_RATE]:.2e}"
        if metric_names.LOSS_SCALE in latest:
            text += f", loss scale {latest[metric_names.LOSS_SCALE]:g}"
            text += f", {latest[metric_names.SKIPPED_STEPS]:.0f} skipped"
        if metric_names.SPEED in latest:  # unknown in the first iterations
            text += f", {latest[metric_names.SPEED]:.0f} images/s"
            text += f", data wait {100 * latest[metric_names.DATA_WAIT]:.0f} %"
        return f"{text}, memory {latest[metric_names.MEMORY]:.2f} GiB"

    def _eta(self) -> str:
        seconds = latest_scalars(self.trainer.storage).get(metric_names.STEP_SECONDS)
        if seconds is None:
            return ""
        left = seconds * (self.trainer.max_iter - self.trainer.iter - 1)
        return f", left {datetime.timedelta(seconds=int(left))}"
