"""Signals that ask a job to save and exit."""

from __future__ import annotations

import signal
import time

# From a terminal, a cluster's scheduler, and a cluster's warning.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
# A cluster signals the ranks and the launcher one after the other: that is one request.
REPEAT_SECONDS = 2


def stop_signals() -> tuple[int, ...]:
    """``STOP_SIGNALS`` without SIGHUP if ``nohup`` ignores it: the run must outlive its
    terminal."""
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        return tuple(number for number in STOP_SIGNALS if number != signal.SIGHUP)
    return STOP_SIGNALS


class RepeatedSignal:
    """Detects a signal that comes again ``REPEAT_SECONDS`` after its first time or later."""

    def __init__(self):
        self._first: dict[int, float] = {}

    def add(self, number: int) -> bool:
        now = time.monotonic()
        return now - self._first.setdefault(number, now) >= REPEAT_SECONDS
