"""LiBai's checkpoints, written whole or not at all.

A checkpoint is a directory of ``flow.save`` files (``model``, optimizer and schedule state) and
``progress.json``. It is written under a temporary name and renamed when complete; the file
``last_checkpoint`` names the latest one and moves only after that.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import oneflow as flow
from libai.utils import distributed as dist
from libai.utils.checkpoint import Checkpointer as LiBaiCheckpointer

PROGRESS = "progress.json"


class Checkpointer(LiBaiCheckpointer):
    """Save and load by all ranks together; rank 0 touches the disk."""

    def save(self, name: str, iteration: int, **progress) -> None:
        """Write checkpoint ``name`` after iteration number ``iteration`` (counted from 0).

        Args:
            progress: further plain values to be kept in ``progress.json``.
        """
        state = {"model": self.model.state_dict()}
        state.update({key: item.state_dict() for key, item in self.checkpointables.items()})
        target = Path(self.save_dir) / name
        partial = target.with_name(f"{name}.partial")
        if dist.is_main_process():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        dist.synchronize()
        for key, value in state.items():
            flow.save(value, str(partial / key), global_dst_rank=0)
        if dist.is_main_process():
            progress["iteration"] = iteration
            (partial / PROGRESS).write_text(json.dumps(progress))
            _flush(partial)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(partial, target)
            self.tag_last_checkpoint(name)
        dist.synchronize()
        self.logger.info(f"Saved checkpoint {target}")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        pointer = Path(self.save_dir) / "last_checkpoint"
        partial = pointer.with_name("last_checkpoint.partial")
        partial.write_text(last_filename_basename)
        _flush(partial)
        os.replace(partial, pointer)

    def progress(self) -> dict | None:
        """``progress.json`` of the latest checkpoint, None when there is no checkpoint."""
        if not self.has_checkpoint():
            return None
        return json.loads((Path(self.get_checkpoint_file()) / PROGRESS).read_text())

    def _load_file(self, f: str) -> dict:
        names = sorted(p.name for p in Path(f).iterdir() if p.is_dir())
        return {name: flow.load(os.path.join(f, name), global_src_rank=0) for name in names}


def _flush(path: Path) -> None:
    """Force a file, or all files of a folder, to disk before a rename makes them visible."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
