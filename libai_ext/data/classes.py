"""Class numbers: every data set uses those of the training data; checkpoints keep them."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

import numpy as np
from libai.utils import distributed as dist
from oneflow.framework.check_point_v2 import _broadcast_py_object

from libai_ext.checkpoint import pointer, record
from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.data.skip_unreadable import SkipUnreadable
from libai_ext.data.walk import some
from libai_ext.errors import DataError
from libai_ext.files.regular import read_regular

MAX_NAMES = 64 << 20  # bytes of a list of classes


def use_class_numbers(source: SkipUnreadable, classes: Sequence[str], key: str) -> None:
    """Use the positions in ``classes`` as the class numbers of a source, which may lack classes.

    Args:
        key: the config key of the data, for the messages.

    Raises:
        DataError: a sample has no class, or one that is not in ``classes``.
    """
    unlabelled = np.flatnonzero(unlabelled_samples(source))
    if len(unlabelled):
        raise DataError(
            f"{key}: {len(unlabelled):,} of {len(source):,} samples have no class, such "
            f"as {source.name(int(unlabelled[0]))}. A class is a sub-folder (root/class/image), a "
            ".cls member of a tar shard, or a line of the list in labels:FILE:FOLDER"
        )
    try:
        source.use_classes(classes)
    except DataError as error:
        raise DataError(f"{key} has classes that the model was not trained on: {error}") from None


def unlabelled_samples(source) -> np.ndarray:
    """bool [N]: the samples without a class."""
    return np.array([not name for name in source.classes])[source.labels]


def describe_empty_classes(source) -> str:
    """The end of a message: the classes without samples, or nothing."""
    absent = np.setdiff1d(np.arange(len(source.classes)), source.labels)
    return f"; without an image: {some([source.classes[i] for i in absent])}" if len(absent) else ""


def saved_classes(path: str) -> list[str] | None:
    """The class names in a checkpoint, or in the last checkpoint of a run; None if it has none. All
    ranks call it; only rank 0 reads the folder."""
    return _broadcast_py_object(_read(Path(path)) if dist.is_main_process() else None)


def _read(path: Path) -> list[str] | None:
    try:
        path = pointer.read(path)
    except CheckpointError:  # not a run
        pass
    try:
        names = (record.read(str(path)) or {}).get("classes")
    except CheckpointError:  # loading the weights reports it
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return names if any(names) else None


def read_names(file: str, key: str = "task.classes") -> list[str]:
    """Read class names from a file, one per line, in the order of their numbers.

    Args:
        key: the config key that names the file, for the messages.

    Raises:
        DataError: the file cannot be read, is empty, or names a class twice.
    """
    try:
        names = read_regular(file, MAX_NAMES).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{key} {file} cannot be read: {reason}") from error
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise DataError(f"{key} {file} names no class")
    if len(set(names)) < len(names):
        raise DataError(f"{key} {file} names a class twice; expected: one name a line")
    return names
