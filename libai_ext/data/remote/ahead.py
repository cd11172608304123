"""Fetches the next shards of the order, in a thread of a data worker."""

from __future__ import annotations

import logging
import os
import queue
import threading
from typing import Sequence

from libai_ext.data.remote.cache import Shard, ShardCache

logger = logging.getLogger(__name__)


class Ahead:
    """Starts its thread in the process that calls :meth:`want`. The workers of a machine fetch
    different shards: each leaves those that another one fetches."""

    def __init__(self, cache: ShardCache):
        self.cache = cache
        self._pid = -1
        self._wanted: tuple = ()
        self._queue: queue.SimpleQueue | None = None

    def __getstate__(self):
        return dict(cache=self.cache, _pid=-1, _wanted=(), _queue=None)

    def want(self, shards: Sequence[Shard]) -> None:
        """Fetch these shards, in this order, in place of those that were wanted before."""
        if self._pid != os.getpid():
            self._pid, self._queue = os.getpid(), queue.SimpleQueue()
            threading.Thread(target=self._run, args=(self._queue,), daemon=True).start()
        elif self._wanted == tuple(shards):
            return
        self._wanted = tuple(shards)
        assert self._queue is not None
        self._queue.put(self._wanted)

    def _run(self, wanted: queue.SimpleQueue) -> None:
        while True:
            for shard in wanted.get():
                if not wanted.empty():
                    break
                try:
                    self.cache.fetch(shard, wait=False)
                except Exception as error:  # reading the shard raises it again
                    logger.info(f"not fetched ahead: {error}")
                    break
