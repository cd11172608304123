"""A run's output directory belongs to that run: no other one writes over it unasked."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Mapping

from libai.utils import distributed as dist
from omegaconf import DictConfig

from libai_ext.config.lazy_config import dump
from libai_ext.engine import environment
from libai_ext.engine.run_lock import LOCK, RunLock
from libai_ext.errors import ConfigError
from libai_ext.launch.exit_report import restarted

# What a run writes, as patterns; other files in the directory are none of its business.
_WRITTEN = (
    "config.yaml",
    "environment.json",
    "log.txt*",
    "metrics.jsonl",
    "tensorboard",
    "last_checkpoint",
    "model_*",
    "nonfinite_*.json",
    "per_class.txt",
    "confusion.png",
    "predictions.csv",
    "report.html",
)
DEV_RUN = "fast_dev_run"


@contextmanager
def prepare_output_dir(
    cfg: DictConfig, resume: bool = False, start_over: bool = False, dev_run: bool = False
) -> Iterator[None]:
    """Make ``train.output_dir`` ready for a training run, and keep others out while it lasts.

    Called by all ranks; rank 0 touches the disk.

    Args:
        resume: the run goes on with what lies there, as it does when restarted after a crash. One
            that was ended before its first checkpoint starts again.
        start_over: move what an earlier run left to ``before_<n>`` in the same directory.
        dev_run: a trial: use the subdirectory ``fast_dev_run`` instead, emptied.

    Raises:
        ConfigError: the directory holds results of an earlier run and neither is asked for, or
            none to resume; another run is at work there; it cannot be written.
    """
    if dev_run:
        cfg.train.output_dir = str(Path(cfg.train.output_dir) / DEV_RUN)
    if not dist.is_main_process():
        yield
        return
    folder = Path(cfg.train.output_dir)
    if resume and not _written(folder) and not (folder / LOCK).exists():
        raise ConfigError(_refusal(folder, resume))
    make_output_dir(cfg)
    try:
        lock = RunLock(folder)
    except OSError as error:
        raise unwritable(folder, error) from None
    with lock:
        if dev_run:
            _empty(folder)
        elif start_over and not restarted():
            _move_aside(folder)
        elif not resume and _refusal(folder, resume):
            raise ConfigError(_refusal(folder, resume))
        yield


def make_output_dir(cfg: DictConfig) -> None:
    """Make ``train.output_dir`` where it is missing; called by all ranks.

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


def check_output_dir(cfg: DictConfig, resume: bool = False, start_over: bool = False) -> list[str]:
    """Judge ``train.output_dir`` as :func:`prepare_output_dir` does, and touch nothing.

    Returns:
        What a run would be refused for: an earlier run lies there. A trial does it no harm.

    Raises:
        ConfigError: there is nothing to resume, or the directory cannot be written.
    """
    if not dist.is_main_process():
        return []
    folder = Path(cfg.train.output_dir)
    _check_writable(folder)
    refusal = None if start_over else _refusal(folder, resume)
    if refusal and resume:
        raise ConfigError(refusal)
    return [refusal] if refusal else []


def _refusal(folder: Path, resume: bool) -> str | None:
    if resume and not _written(folder):
        return f"--resume: train.output_dir {folder} holds no run to go on with"
    if not resume and not restarted() and holds_results(folder):
        return (
            f"train.output_dir {folder} holds an earlier run: go on with it by --resume, keep it "
            "and start anew by --start-over, or give another train.output_dir"
        )
    return None


def _check_writable(folder: Path) -> None:
    """Of a folder that is missing: whether it can be made."""
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    number = errno.EACCES if os.path.isdir(there) else errno.ENOTDIR
    if number == errno.ENOTDIR or not os.access(there, os.W_OK | os.X_OK):
        raise unwritable(folder, OSError(number, os.strerror(number)))


def write_record(
    output_dir: str, cfg: DictConfig | None, run: Mapping[str, str] | None = None
) -> None:
    """Write ``config.yaml`` and ``environment.json`` of a run that is about to start, on rank 0.

    Not before it is known that it may: a resume that the checkpoint contradicts leaves the config
    of the run as it was.

    Args:
        cfg: with nothing derived, so that it can be given as CONFIG again; used on rank 0.
        run: what follows from it, as (heading, text).

    Raises:
        ConfigError: the directory cannot be written.
    """
    if not dist.is_main_process() or cfg is None:
        return
    try:
        cfg.train.output_dir = str(output_dir)
        Path(output_dir, "config.yaml").write_text(dump(cfg), encoding="utf-8")
        environment.write(output_dir, run)
    except OSError as error:
        raise unwritable(output_dir, error) from None


def unwritable(folder, error: OSError) -> ConfigError:
    return ConfigError(f"train.output_dir {folder} cannot be written: {error.strerror}")


def holds_results(folder: Path) -> bool:
    """Whether a run left there what another one would destroy: a checkpoint or metrics."""
    metrics = folder / "metrics.jsonl"
    return (metrics.is_file() and metrics.stat().st_size > 0) or any(folder.glob("model_*"))


def _written(folder: Path) -> list[Path]:
    """What a run wrote into it."""
    return sorted(path for pattern in _WRITTEN for path in folder.glob(pattern))


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOCK:
            path.unlink()


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
