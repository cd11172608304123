"""Replaces unreadable images, by the same rule in every process, and stops at too many."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import multiprocessing
from typing import Iterator, Sequence

import numpy as np
from PIL import Image

from libai_ext.data.decode import BadImage
from libai_ext.data.walk import some
from libai_ext.errors import DataError
from libai_ext.files.anonymous import anonymous_file

logger = logging.getLogger(__name__)

# Fewer bad samples never stop a run: one bad sample in the first ten says little.
MIN_BAD = 10
# So many bad samples in a row mean a wrong folder.
MAX_RUN = 1000


class SkipUnreadable:
    """A source that replaces each unreadable sample, and its label, by the next readable one.

    The replacement depends on the index alone: it is the same in every process and every layout.
    The first sample follows the last.

    Each process computes by itself the share that stops a run, and logs each bad sample once.
    :meth:`totals` adds up the processes.

    Args:
        source: gives (image, label); raises :class:`BadImage` for an unreadable sample.
        max_bad_share: of the samples read by this process. 0 allows none; with another share,
            at least ``MIN_BAD`` bad samples are needed to stop.

    Attributes:
        classes: names, by class number.
        drawn: samples requested from this process so far.
        bad: how many of them were replaced.
    """

    def __init__(self, source, max_bad_share: float = 0.01):
        self.source = source
        self.max_bad_share = max_bad_share
        self.classes = list(source.classes)
        self._numbers: np.ndarray | None = None  # of the source's classes; None: their own
        self.drawn = 0
        self.bad = 0
        self._replacement: dict[int, int] = {}
        self._totals = _SharedCounts(2)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """
        Raises:
            DataError: more bad samples than allowed, or ``MAX_RUN`` in a row.
        """
        self.drawn += 1
        self._totals.add(0)
        image, label = self._readable(index)
        return image, label if self._numbers is None else int(self._numbers[label])

    def _readable(self, index: int) -> tuple[Image.Image, int]:
        if index not in self._replacement:
            try:
                return self.source[index]
            except BadImage as error:
                self._count(error)
                return self._next_readable(index, error)
        self._count(None)
        return self.source[self._replacement[index]]

    @property
    def labels(self) -> np.ndarray:
        """int64 [N]: class numbers."""
        labels = self.source.labels
        return labels if self._numbers is None else self._numbers[labels]

    def use_classes(self, classes: Sequence[str]) -> None:
        """Use the class numbers of another list, which may have more classes.

        Raises:
            DataError: a sample's class is not in the list.
        """
        number = {name: i for i, name in enumerate(classes)}
        own = self.source.classes
        unknown = [own[i] for i in np.unique(self.source.labels) if own[i] not in number]
        if unknown:
            raise DataError(
                f"{some(unknown)} ({len(unknown)}); known are {some(list(number))} ({len(number)})"
            )
        self.classes = list(classes)
        self._numbers = np.array([number.get(name, -1) for name in own], np.int64)

    def identity(self) -> Iterator[bytes]:
        """See :mod:`libai_ext.data.fingerprint`."""
        return self.source.identity()

    def name(self, index: int) -> str:
        """Path of a sample, or its number where the source has no paths."""
        return getattr(self.source, "name", str)(index)

    def totals(self) -> tuple[int, ...]:
        """``drawn`` and ``bad`` of this process and its forks, such as data workers."""
        return self._totals.values()

    def _next_readable(self, index: int, error: BadImage) -> tuple[Image.Image, int]:
        for step in range(1, min(len(self), MAX_RUN)):
            candidate = (index + step) % len(self)
            candidate = self._replacement.get(candidate, candidate)
            try:
                sample = self.source[candidate]
            except BadImage:
                continue
            self._replacement[index] = candidate
            logger.warning(
                f"{error}; sample {candidate} replaces sample {index} "
                f"({self.bad} bad of {self.drawn} read by this process)"
            )
            return sample
        run = min(len(self), MAX_RUN)
        raise DataError(f"no readable image among {run} from number {index} on; {error}") from error

    def _count(self, error: BadImage | None) -> None:
        self.bad += 1
        self._totals.add(1)
        enough = self.bad >= MIN_BAD or not self.max_bad_share
        if enough and self.bad > self.max_bad_share * self.drawn:
            last = f"; the last: {error}" if error else ""
            raise DataError(
                f"{self.bad} of the {self.drawn} images read by this process are bad, more than "
                f"data.max_bad_share={self.max_bad_share:g} allows{last}"
            ) from error


class _SharedCounts:
    """Counters shared by a process and its forks. A pickled copy starts from 0.

    The lock is the kernel's lock on a file: the kernel releases it when its process is killed.
    """

    def __init__(self, count: int):
        self._numbers = multiprocessing.RawArray("q", count)
        self._lock = anonymous_file("counts")

    def __reduce__(self):
        return _SharedCounts, (len(self._numbers),)

    def add(self, which: int) -> None:
        with self._locked():
            self._numbers[which] += 1

    def values(self) -> tuple[int, ...]:
        with self._locked():
            return tuple(self._numbers)

    @contextlib.contextmanager
    def _locked(self):
        fcntl.lockf(self._lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN)
