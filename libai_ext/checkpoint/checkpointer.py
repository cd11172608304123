"""LiBai's checkpoints, written completely or not at all, while training continues.

A checkpoint is a folder of ``flow.save`` folders (``model``, optimizer and schedule state), with
``progress.json`` and the checksums of all files. It is written under a temporary name, synced to
disk and renamed when complete. Only then the file ``last_checkpoint`` names it. ``record.json``
describes the model for other uses of the weights.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import threading
from pathlib import Path
from typing import Any, Callable, Sequence

from libai.utils import distributed as dist
from libai.utils.checkpoint import Checkpointer as LiBaiCheckpointer
from oneflow import Tensor
from oneflow.framework.check_point_v2 import _broadcast_py_object

from libai_ext.checkpoint import host_state, manifest, pointer, record
from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.errors import UserError
from libai_ext.files.atomic import replace_folder, sync_tree

PROGRESS = "progress.json"
_NAMES = re.compile(r"model_(\d+|best|final)(\.old)?")

logger = logging.getLogger(__name__)
# Name of the learning rate schedule among the checkpointables.
SCHEDULE = "lr_scheduler"


class Checkpointer(LiBaiCheckpointer):
    """Saves and loads. All ranks call each method; only rank 0 uses the disk.

    Args:
        model: its state is saved as ``model``.
        save_dir: folder of the checkpoints.
        max_to_keep: how many periodic checkpoints are kept; older ones are removed, but never
            ``model_best`` and ``model_final``. None: all are kept.
        checkpointables: other objects with ``state_dict`` and ``load_state_dict``, by name.

    Attributes:
        plain: other values for each ``progress.json``, from rank 0.
        record: content of each checkpoint's ``record.json``; None: no such file.
        before_save: called by :meth:`save` first, on all ranks.
        failure: error of the latest save, on rank 0; None if it succeeded.
    """

    def __init__(
        self, model, save_dir: str = "", *, max_to_keep: int | None = None, **checkpointables
    ):
        super().__init__(model, save_dir, **checkpointables)
        self.max_to_keep = max_to_keep
        self.plain: dict[str, Any] = {}
        self.record: dict[str, Any] | None = None
        self.before_save: Callable[[], None] = lambda: None
        self.failure: str | None = None
        self._thread: threading.Thread | None = None

    def save(self, name: str, iteration: int, is_latest: bool = True, **plain) -> None:
        """Save the state as checkpoint ``name``, after iteration ``iteration`` (from 0).

        Returns when rank 0 has a copy in memory; a thread writes it. A save waits for the previous
        one. A disk error is logged and kept in :attr:`failure`; older checkpoints stay.

        Args:
            is_latest: a resumed run starts from this checkpoint.
            plain: values that are added to :attr:`plain` when this checkpoint is on disk.
        """
        self.join()
        self.before_save()
        state = {"model": self.model.state_dict()}
        state.update({key: item.state_dict() for key, item in self.checkpointables.items()})
        state = host_state.gather(state)
        if dist.is_main_process():
            # As text: training changes the values while the thread writes.
            progress = json.dumps({**self.plain, **plain, "iteration": iteration}, indent=1)
            self._thread = threading.Thread(
                target=self._try_to_write, args=(name, state, iteration, progress, is_latest, plain)
            )
            self._thread.start()

    def join(self) -> None:
        """Wait for the current save, on rank 0."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def finish(self) -> None:
        """Wait, on all ranks, until the latest save is on disk.

        Raises:
            CheckpointError: it failed; raised on all ranks.
        """
        self.join()
        failure = from_rank_0(lambda: self.failure)
        if failure is not None:
            raise CheckpointError(failure)

    def _try_to_write(
        self, name: str, state: dict, iteration: int, progress: str, is_latest: bool, plain: dict
    ) -> None:
        target = Path(self.save_dir) / name
        try:
            self._write(target, state, progress)
            self.plain.update(plain)
            if is_latest:
                self.tag_last_checkpoint(name)
            self._prune(iteration)
        except Exception as error:
            reason = error.strerror if isinstance(error, OSError) else repr(error)
            self.failure = f"checkpoint {target} could not be written: {reason}"
            logger.error(self.failure, exc_info=not isinstance(error, OSError))
            self._remove_partial()
        else:
            self.failure = None
            logger.info(f"Saved checkpoint {target}")

    def _write(self, target: Path, state: dict, progress: str) -> None:
        os.makedirs(self.save_dir, exist_ok=True)
        self._remove_partial()
        partial = target.with_name(f"{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a name of the caller's own
        partial.mkdir()
        for key, value in state.items():
            host_state.write(value, partial / key)
        (partial / PROGRESS).write_text(progress)
        if self.record is not None:
            (partial / record.RECORD).write_text(record.dumps(self.record))
        manifest.write(partial)
        sync_tree(partial)
        replace_folder(str(partial), str(target))

    def _remove_partial(self) -> None:
        """Remove partial and replaced checkpoints that a crash or an error left, and no folder of
        the user's with a similar name."""
        folder = Path(self.save_dir)
        replaced = [path for path in folder.glob("*.old") if path.with_suffix("").exists()]
        for path in (*folder.glob("*.partial"), *replaced):
            if _NAMES.fullmatch(path.stem):
                shutil.rmtree(path, ignore_errors=True)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        pointer.write(self.save_dir, last_filename_basename)

    def _prune(self, iteration: int) -> None:
        """Remove old periodic checkpoints. Those after ``iteration`` stay: a run that went back
        overwrites them."""
        if self.max_to_keep is None:
            return
        numbers = [
            (_iteration(path), path)
            for path in checkpoint_folders(self.save_dir)
            if path.name[-1].isdigit()
        ]
        reached = sorted(item for item in numbers if item[0] <= iteration)
        for _, path in reached[: -self.max_to_keep]:
            path.rename(path.with_name(f"{path.name}.partial"))  # a crash must not leave half of it
        self._remove_partial()

    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint, valid or not; all ranks call it."""
        return from_rank_0(lambda: bool(checkpoint_folders(self.save_dir)))

    def get_checkpoint_file(self) -> str:
        """Folder of the latest valid checkpoint; all ranks call it.

        ``last_checkpoint`` names it. If that one is damaged, it is the one before.

        Raises:
            CheckpointError: there is no valid checkpoint.
        """
        return from_rank_0(self._latest)

    def _latest(self) -> str:
        candidates = self._candidates()
        if not candidates:
            raise CheckpointError(f"{self.save_dir}: no checkpoint in this folder")
        for path in candidates:
            try:
                manifest.verify(path)
                return str(path)
            except CheckpointError as error:
                logger.warning(f"checkpoint {path.name} is damaged and not used: {error}")
        names = ", ".join(path.name for path in candidates)
        raise CheckpointError(f"{self.save_dir}: no checkpoint is whole, of {names}")

    def _candidates(self) -> list[Path]:
        """The checkpoint to resume from, then those of earlier iterations, latest first."""
        folders = sorted(checkpoint_folders(self.save_dir), key=_recency, reverse=True)
        try:
            latest = pointer.read(self.save_dir)
        except CheckpointError as error:
            latest = None
            if folders:
                logger.warning(str(error))
        if latest not in folders:
            if latest is not None:
                logger.warning(f"checkpoint {latest.name} is missing")
            return folders
        reached = _iteration(latest)
        others = [path for path in folders if path != latest]
        return [latest, *(path for path in others if reached < 0 or _iteration(path) <= reached)]

    def progress(self, path: str) -> dict:
        """The progress of a checkpoint; all ranks call it."""
        return from_rank_0(lambda: read_progress(path))

    def steps_taken(self, path: str) -> int:
        """Optimizer steps before a checkpoint; all ranks call it.

        Raises:
            CheckpointError: it does not say.
        """
        state = _read_state(os.path.join(path, SCHEDULE))
        taken = state.get("last_step") if isinstance(state, dict) else None
        if type(taken) is not int:
            raise CheckpointError(f"{path}/{SCHEDULE}: not the state of a schedule")
        return taken

    def load(self, path: str, checkpointables: Sequence[str] | None = None) -> dict:
        """Restore the model and the named checkpointables (None: all); all ranks call it.

        Returns:
            The checkpoint's ``progress.json``.

        Raises:
            CheckpointError: the checkpoint lacks one of them, or has another model.
        """
        names = list(self.checkpointables if checkpointables is None else checkpointables)
        saved = from_rank_0(lambda: [item.name for item in Path(path).iterdir()])
        missing = [name for name in ("model", *names) if name not in saved]
        if missing:
            raise CheckpointError(f"{path}: the checkpoint has no {', '.join(missing)}")
        model = _read_state(os.path.join(path, "model"))
        if not _is_flat(model):
            raise CheckpointError(f"{path}/model: not the weights of a model")
        incompatible = self._load_model({"model": model})
        if any(incompatible):
            raise CheckpointError(f"{path}: the checkpoint is of another model: {incompatible}")
        for name in names:  # one by one: rank 0 may lack memory for all
            state = _read_state(os.path.join(path, name))
            try:
                self.checkpointables[name].load_state_dict(state)
            except (AttributeError, AssertionError, LookupError, TypeError, ValueError) as error:
                if isinstance(error, UserError):
                    raise
                raise CheckpointError(
                    f"{path}/{name}: not what this run keeps of its {name}: {error!r}"
                ) from error
        logger.info(f"Loaded checkpoint {path}")
        return self.progress(path)


def checkpoint_folders(run: str | os.PathLike[str]) -> list[Path]:
    """The checkpoints in a run's output directory, valid or not, but none that was never completed.
    Other files may have similar names. A folder that cannot be read has none."""
    named = [path for path in Path(run).glob("model_*") if _NAMES.fullmatch(path.name)]
    return [path for path in named if path.is_dir()]


def written_folders(run: Path) -> list[Path]:
    """The checkpoints of a run, and those that were never completed."""
    partial = [path for path in run.glob("*.partial") if _NAMES.fullmatch(path.stem)]
    return [*checkpoint_folders(run), *partial]


def latest_checkpoint(path: str) -> str:
    """``path`` if it is a checkpoint, or the latest valid one of a run; all ranks call it.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    if from_rank_0(lambda: os.path.isfile(os.path.join(path, PROGRESS))):
        from_rank_0(lambda: manifest.verify(Path(path)))
        return path
    return Checkpointer(None, path).get_checkpoint_file()


def recorded_settings(path: str) -> dict[str, Any]:
    """The settings in the latest ``progress.json`` that can be read; all ranks call it.

    Args:
        path: a checkpoint or a run.

    Returns:
        See :func:`libai_ext.engine.resume_check.settings`; empty if there are none.
    """
    return from_rank_0(lambda: _settings(path))


def _settings(path: str) -> dict[str, Any]:
    folders = sorted(checkpoint_folders(path), key=_recency, reverse=True)
    for folder in [Path(path), *folders]:
        with contextlib.suppress(CheckpointError):
            settings = read_progress(str(folder)).get("settings")
            if isinstance(settings, dict):
                return settings
    return {}


def _is_flat(state: Any) -> bool:
    """Whether it is a dictionary of tensors by name."""
    return isinstance(state, dict) and all(
        type(name) is str and isinstance(value, Tensor) for name, value in state.items()
    )


def _read_state(folder: str) -> Any:
    """The state in a folder of a checkpoint; all ranks call it."""
    tensors: list = []
    description = from_rank_0(lambda: host_state.describe(folder, tensors))
    return host_state.restore(description, tensors)


def _iteration(path: Path) -> int:
    """The last iteration in a checkpoint; -1 if its progress.json is damaged."""
    number = _NAMES.fullmatch(path.name)
    if number and number[1].isdigit():
        return int(number[1])
    try:
        return read_progress(str(path))["iteration"]
    except CheckpointError:
        return -1


def read_progress(folder: str) -> dict[str, Any]:
    """``progress.json`` of a checkpoint.

    Raises:
        CheckpointError: it cannot be read, or has no iteration.
    """
    path = os.path.join(folder, PROGRESS)
    content = record.read_text(path)
    try:
        progress = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    if not isinstance(progress, dict) or type(progress.get("iteration")) is not int:
        raise CheckpointError(f"{path}: not the progress of a run")
    return progress


def _recency(path: Path) -> tuple[int, bool]:
    return _iteration(path), not path.name.endswith(".old")


def from_rank_0(ask: Callable[[], Any]) -> Any:
    """Call ``ask`` on rank 0 and return its result, or raise its error, on every rank."""
    answer = None
    if dist.is_main_process():
        try:
            answer = ask()
        except (OSError, ValueError) as error:
            answer = error if isinstance(error, CheckpointError) else CheckpointError(str(error))
    answer = _broadcast_py_object(answer)
    if isinstance(answer, CheckpointError):
        raise answer
    return answer
