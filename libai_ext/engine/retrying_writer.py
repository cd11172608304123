"""A log file that training can do without for a while."""

from __future__ import annotations

import logging

from libai.utils.events import EventStorage, EventWriter, get_event_storage

logger = logging.getLogger(__name__)
_INTERNAL = ("eta_seconds",)


def latest_scalars(storage: EventStorage) -> dict[str, float]:
    """Scalars of the last iteration, by name: see :mod:`libai_ext.engine.metric_names`."""
    return {
        name: value
        for name, (value, iteration) in storage.latest().items()
        if iteration == storage.iter and name not in _INTERNAL
    }


class RetryingWriter(EventWriter):
    """If a write fails, it warns, keeps the records in memory, and tries again at each logging
    step."""

    def __init__(self, path: str):
        self.path = path
        self.pending: list = []

    def write(self) -> None:
        self.pending.append(self.record(get_event_storage()))
        self.flush()

    def flush(self) -> None:
        try:
            self.append(self.pending)
        except OSError as error:
            logger.warning(
                f"{self.path} cannot be written ({error.strerror}); {len(self.pending)} logging "
                "steps are kept in memory until it can"
            )
        else:
            self.pending = []

    def close(self) -> None:
        if self.pending:
            self.flush()

    def record(self, storage: EventStorage):
        """The record of the last iteration."""
        raise NotImplementedError

    def append(self, records: list) -> None:
        """Write all records.

        Raises:
            OSError: they will be given again.
        """
        raise NotImplementedError
