"""Class numbers: those of the training data, kept with the weights, for every other data set."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

import numpy as np
from libai.utils import distributed as dist
from oneflow.framework.check_point_v2 import _broadcast_py_object

from libai_ext.checkpoint import pointer, record
from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.data.tolerant import Tolerant
from libai_ext.data.walk import some
from libai_ext.errors import DataError
from libai_ext.files.regular import read_regular

MAX_NAMES = 64 << 20  # bytes of a list of classes


def follow(source: Tolerant, classes: Sequence[str], key: str) -> None:
    """Number the classes of a source by their places in ``classes``. It may lack some.

    Args:
        key: of the data, for the messages.

    Raises:
        DataError: there are samples of no class, or of one that is not in ``classes``.
    """
    nameless = np.flatnonzero(nameless_samples(source))
    if len(nameless):
        raise DataError(
            f"{key}: {len(nameless):,} of {len(source):,} samples have no class, as "
            f"{source.name(int(nameless[0]))}. A class is a sub-folder (root/class/image), a .cls "
            "member of a tar shard, or a line of the list in labels:FILE:FOLDER"
        )
    try:
        source.use_classes(classes)
    except DataError as error:
        raise DataError(f"{key} has classes that the model was not trained on: {error}") from None


def nameless_samples(source) -> np.ndarray:
    """bool [N]: the samples without a class."""
    return np.array([not name for name in source.classes])[source.labels]


def without_samples(source) -> str:
    """A half sentence that names the classes without samples; nothing where there are none."""
    absent = np.setdiff1d(np.arange(len(source.classes)), source.labels)
    return f"; without an image: {some([source.classes[i] for i in absent])}" if len(absent) else ""


def saved(path: str) -> list[str] | None:
    """The classes that a checkpoint or a run's last one names, None where it names none; asked by
    all ranks together, as only rank 0 needs to see the folder."""
    return _broadcast_py_object(_read(Path(path)) if dist.is_main_process() else None)


def _read(path: Path) -> list[str] | None:
    try:
        path = pointer.read(path)
    except CheckpointError:  # no run, but a checkpoint or nothing of the kind
        pass
    try:
        names = (record.read(str(path)) or {}).get("classes")
    except CheckpointError:  # whoever loads the weights says so
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return names if any(names) else None


def read_names(file: str) -> list[str]:
    """The lines of a file: class names in the order of their numbers.

    Raises:
        DataError: it cannot be read, is empty, or names a class twice.
    """
    try:
        names = read_regular(file, MAX_NAMES).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"task.classes {file} cannot be read: {reason}") from error
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise DataError(f"task.classes {file} names no class")
    if len(set(names)) < len(names):
        raise DataError(f"task.classes {file} names a class twice; expected is a name a line")
    return names
