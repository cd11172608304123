"""LiBai's checkpoints, written whole or not at all, beside the training loop.

A checkpoint is a folder of ``flow.save`` folders (``model``, optimizer and schedule state), with
``progress.json`` and the checksums of all files. It is written under a temporary name, forced to
disk and renamed when complete; the file ``last_checkpoint`` names the latest one and moves only
after that. ``record.json`` in it is for whoever uses the weights elsewhere.
"""

from __future__ import annotations

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


class Checkpointer(LiBaiCheckpointer):
    """Save and load by all ranks together; rank 0 touches the disk.

    Args:
        model: its state is ``model``.
        save_dir: folder of the checkpoints.
        max_to_keep: how many periodic checkpoints stay; the older ones are removed, ``model_best``
            and ``model_final`` never. None: all stay.
        checkpointables: what else has ``state_dict`` and ``load_state_dict``, by name.

    Attributes:
        plain: further values for ``progress.json`` of each checkpoint, those of rank 0.
        record: what ``record.json`` of each checkpoint says; None: there is none.
        before_save: called by :meth:`save` first, on all ranks.
        failure: why the latest save did not succeed, on rank 0; None when it did.
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
        """Keep the present state as checkpoint ``name``, after iteration ``iteration`` (from 0).

        Returns when rank 0 holds a copy in its memory; a thread writes it. One save waits for the
        one before. A disk that refuses is logged and leaves the older checkpoints as they are;
        see :attr:`failure`.

        Args:
            is_latest: a resumed run goes on from here.
            plain: goes into :attr:`plain` with this checkpoint, once it is on disk.
        """
        self.join()
        self.before_save()
        state = {"model": self.model.state_dict()}
        state.update({key: item.state_dict() for key, item in self.checkpointables.items()})
        state = host_state.gather(state)
        if dist.is_main_process():
            # As text: training goes on and changes the values while the thread writes.
            progress = json.dumps({**self.plain, **plain, "iteration": iteration}, indent=1)
            self._thread = threading.Thread(
                target=self._try_to_write, args=(name, state, iteration, progress, is_latest, plain)
            )
            self._thread.start()

    def join(self) -> None:
        """Wait for the save under way, on the rank that writes."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def finish(self) -> None:
        """Wait, on all ranks, until the latest save is on disk.

        Raises:
            CheckpointError: it failed; on all ranks, since none can leave without its peers.
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
        """What a crash or an error left half written, or of a checkpoint that was replaced."""
        folder = Path(self.save_dir)
        replaced = [path for path in folder.glob("model_*.old") if path.with_suffix("").exists()]
        for path in [*folder.glob("*.partial"), *replaced]:
            shutil.rmtree(path, ignore_errors=True)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        pointer.write(self.save_dir, last_filename_basename)

    def _prune(self, iteration: int) -> None:
        """Those after ``iteration`` were left behind by a run that went back: it writes them
        again."""
        if self.max_to_keep is None:
            return
        numbers = [(_iteration(path), path) for path in self._folders() if path.name[-1].isdigit()]
        reached = sorted(item for item in numbers if item[0] <= iteration)
        for _, path in reached[: -self.max_to_keep]:
            path.rename(path.with_name(f"{path.name}.partial"))  # a half removed one is none
        self._remove_partial()

    def _folders(self) -> list[Path]:
        folder = Path(self.save_dir)
        if not folder.is_dir():
            return []
        return [path for path in folder.iterdir() if _NAMES.fullmatch(path.name)]

    def has_checkpoint(self) -> bool:
        """Whether there is any, whole or not; asked by all ranks together."""
        return from_rank_0(lambda: bool(self._folders()))

    def get_checkpoint_file(self) -> str:
        """Folder of the latest checkpoint that is whole; asked by all ranks together.

        It is the one that ``last_checkpoint`` names, or where that is damaged the one before it.

        Raises:
            CheckpointError: there is none, or none is whole.
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
        """The one to go on from, then those of earlier iterations, latest first."""
        folders = sorted(self._folders(), key=_recency, reverse=True)
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
        """``progress.json`` of a checkpoint; asked by all ranks together."""
        return from_rank_0(lambda: read_progress(path))

    def load(self, path: str, checkpointables: Sequence[str] | None = None) -> dict:
        """Restore the model and the named checkpointables, all when None; by all ranks together.

        Returns:
            The checkpoint's ``progress.json``.

        Raises:
            CheckpointError: the checkpoint lacks one of them, or its model is another one.
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
        for name in names:  # one after the other: rank 0 holds no second copy of all
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


def _is_flat(state: Any) -> bool:
    """Whether it is a dictionary of tensors by name."""
    return isinstance(state, dict) and all(
        type(name) is str and isinstance(value, Tensor) for name, value in state.items()
    )


def _read_state(folder: str) -> Any:
    """The state in a folder of a checkpoint; by all ranks together."""
    tensors: list = []
    description = from_rank_0(lambda: host_state.describe(folder, tensors))
    return host_state.restore(description, tensors)


def _iteration(path: Path) -> int:
    """The last iteration that a checkpoint contains; -1 when it is too damaged to say."""
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
        CheckpointError: it cannot be read, or says nothing of an iteration.
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
    """The answer of rank 0 on every rank; where it fails, a `CheckpointError` on every rank."""
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
