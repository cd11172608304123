"""The output directory of a run; another run does not overwrite it unless the user asks."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Mapping, Sequence

from libai.utils import distributed as dist
from omegaconf import DictConfig

from libai_ext.checkpoint.checkpointer import checkpoint_folders, written_folders
from libai_ext.config.lazy_config import dump
from libai_ext.config.names import nearest, question
from libai_ext.engine import environment
from libai_ext.engine.run_lock import LOCK, RunLock
from libai_ext.errors import ConfigError
from libai_ext.files.atomic import write_text
from libai_ext.launch.exit_report import goes_on, report_begun

# Patterns of the files of a run beside its checkpoints; it does not touch other files in the
# directory.
_WRITTEN = (
    "config.yaml",
    "environment.json",
    "log.txt*",
    "metrics.jsonl",
    "tensorboard",
    "loggers",
    "wandb",
    "last_checkpoint",
    "nonfinite_*.json",
    "per_class.txt",
    "confusion.png",
    "predictions.csv",
    "report.html",
)
DEV_RUN = "fast_dev_run"


@contextmanager
def prepare_output_dir(
    cfg: DictConfig,
    resume: bool = False,
    start_over: bool = False,
    dev_run: bool = False,
    needed: Sequence[str] = (),
) -> Iterator[None]:
    """Prepare ``train.output_dir`` for a training run, and lock it during the run.

    All ranks must call it; only rank 0 writes.

    Args:
        resume: continue the run in the directory; without a checkpoint it starts again.
        start_over: move the files of an earlier run to ``before_<n>`` in the same directory.
        dev_run: a trial: use the subdirectory ``fast_dev_run`` instead, emptied.
        needed: files and folders that the run will read.

    Raises:
        ConfigError: the directory has results of an earlier run and no option says what to do; it
            has no run to resume; another run uses it; it cannot be written; one of ``needed`` would
            be moved or deleted.
    """
    if dev_run:
        cfg.train.output_dir = str(Path(cfg.train.output_dir) / DEV_RUN)
    if not dist.is_main_process():
        yield
        return
    folder = Path(cfg.train.output_dir)
    if resume and os.path.isdir(folder):
        _check_writable(folder)
    if resume and not _written(folder) and not os.path.lexists(folder / LOCK):
        raise ConfigError(_refusal(folder, resume))
    make_output_dir(cfg)
    try:
        lock = RunLock(folder)
    except OSError as error:
        raise unwritable(folder, error) from None
    with lock:
        if dev_run:
            _refuse_loss(needed, list(folder.iterdir()), "--fast-dev-run deletes")
            _empty(folder)
        elif start_over and not goes_on():
            _refuse_loss(needed, _written(folder), "--start-over moves aside")
            _move_aside(folder)
        elif not resume and _refusal(folder, resume):
            raise ConfigError(_refusal(folder, resume))
        report_begun()
        yield


def make_output_dir(cfg: DictConfig) -> None:
    """Make ``train.output_dir`` if it is missing; all ranks must call it.

    Raises:
        ConfigError: it cannot be written.
    """
    if not dist.is_main_process():
        return
    folder = Path(cfg.train.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from None
    _check_writable(folder)


def check_output_dir(
    cfg: DictConfig, resume: bool = False, start_over: bool = False, needed: Sequence[str] = ()
) -> list[str]:
    """Check ``train.output_dir`` as :func:`prepare_output_dir` does, without writing.

    Returns:
        Why a run would be refused: an earlier run is there. A dry run may use it all the same.

    Raises:
        ConfigError: there is no run to resume, the directory cannot be written, or one of
            ``needed`` would be moved.
    """
    if not dist.is_main_process():
        return []
    folder = Path(cfg.train.output_dir)
    _check_writable(folder)
    if start_over:
        _refuse_loss(needed, _written(folder), "--start-over moves aside")
    refusal = None if start_over else _refusal(folder, resume)
    if refusal and resume:
        raise ConfigError(refusal)
    return [refusal] if refusal else []


def _refusal(folder: Path, resume: bool) -> str | None:
    if resume and not _written(folder):
        return f"--resume: train.output_dir {folder} holds no run to resume{similar_run(folder)}"
    if not resume and not goes_on() and holds_results(folder):
        return (
            f"train.output_dir {folder} holds an earlier run: continue it by --resume, move it "
            "aside by --start-over, or set another train.output_dir"
        )
    return None


def similar_run(folder: Path) -> str:
    """The end of a message about a folder without a run: one beside it with a similar name."""
    runs = [path.name for path in folder.parent.glob("*") if holds_results(path)]
    close = nearest(folder.name, runs)
    return question(str(folder.parent / close)) if close else ""


def _check_writable(folder: Path) -> None:
    """A missing folder must be one that can be made."""
    existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    number = errno.EACCES if os.path.isdir(existing) else errno.ENOTDIR
    if number == errno.ENOTDIR or not os.access(existing, os.W_OK | os.X_OK):
        raise unwritable(folder, OSError(number, os.strerror(number)))


def write_record(
    output_dir: str, cfg: DictConfig | None, run: Mapping[str, str] | None = None
) -> None:
    """Write ``config.yaml`` and ``environment.json`` of a run, on rank 0.

    Call it after all checks: a resume that is refused must not change the config of the run.

    Args:
        cfg: before values are derived, so that it can be given as CONFIG again; used on rank 0.
        run: the derived values, as (heading, text).

    Raises:
        ConfigError: the directory cannot be written.
    """
    if not dist.is_main_process() or cfg is None:
        return
    try:
        cfg.train.output_dir = str(output_dir)
        write_text(Path(output_dir, "config.yaml"), dump(cfg))
        environment.write(output_dir, run)
    except OSError as error:
        raise unwritable(output_dir, error) from None


def unwritable(folder, error: OSError) -> ConfigError:
    return ConfigError(f"train.output_dir {folder} cannot be written: {error.strerror}")


def holds_results(folder: Path) -> bool:
    """Whether the folder has results that another run would destroy: checkpoints or metrics. None
    are known of a folder that cannot be read."""
    metrics = folder / "metrics.jsonl"
    # Path.is_file raises an error in another user's folder.
    has_metrics = os.path.isfile(metrics) and os.path.getsize(metrics) > 0
    return has_metrics or bool(checkpoint_folders(folder))


def _written(folder: Path) -> list[Path]:
    """The files of a run."""
    files = [path for pattern in _WRITTEN for path in folder.glob(pattern)]
    return sorted([*files, *written_folders(folder)])


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOCK:
            path.unlink()


def _refuse_loss(needed: Sequence[str], lost: Sequence[Path], what: str) -> None:
    for path in needed:
        real = os.path.realpath(path)
        for other in map(os.path.realpath, lost):
            # The folder of a run stands for its checkpoints.
            if real == os.path.dirname(other) or os.path.commonpath([real, other]) == other:
                raise ConfigError(
                    f"the run starts from {path}, which {what}: copy it to another folder first, "
                    "or set another train.output_dir"
                )


def _move_aside(folder: Path) -> None:
    written = _written(folder)
    if not written:
        return
    number = 1
    while (folder / f"before_{number}").exists():
        number += 1
    target = folder / f"before_{number}"
    target.mkdir()
    for path in written:
        path.rename(target / path.name)
