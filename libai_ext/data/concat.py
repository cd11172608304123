"""Several sources as one."""

from __future__ import annotations

import bisect
from itertools import accumulate, chain
from typing import Iterator, Sequence

import numpy as np
from PIL import Image


class Concat:
    """The samples of the parts, one part after the other.

    Classes are matched by name. Their order is that of a part that has all of them, else
    alphabetical, as in :class:`ImageFolder` with several roots.
    """

    def __init__(self, parts: Sequence):
        self.parts = list(parts)
        self.ends = list(accumulate(len(part) for part in self.parts))
        lists = [list(part.classes) for part in self.parts]
        union = {name for names in lists for name in names}
        longest = max(lists, key=len)
        self.classes = longest if union == set(longest) else sorted(union)
        number = {name: i for i, name in enumerate(self.classes)}
        self._numbers = [np.array([number[name] for name in names], np.int64) for names in lists]

    @property
    def labels(self) -> np.ndarray:
        """int64 [N]: class numbers."""
        return np.concatenate([own[part.labels] for own, part in zip(self._numbers, self.parts)])

    def identity(self) -> Iterator[bytes]:
        """See :mod:`libai_ext.data.fingerprint`."""
        return chain.from_iterable(part.identity() for part in self.parts)

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        which, inner = self._locate(index)
        image, label = self.parts[which][inner]
        return image, int(self._numbers[which][label])

    def name(self, index: int) -> str:
        which, inner = self._locate(index)
        return getattr(self.parts[which], "name", str)(inner)

    def _locate(self, index: int) -> tuple[int, int]:
        """(part, index in it)."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        which = bisect.bisect_right(self.ends, index)
        return which, index - (self.ends[which - 1] if which else 0)
