"""Read a checkpoint of any format, recognised by its content, not its name."""

from __future__ import annotations

import os
from typing import Any

from libai_ext.checkpoint import oneflow_folder, pointer, safetensors_file, sharded, torch_file
from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.checkpoint.files import map_file

# Files of Hugging Face's `save_pretrained`, in order of preference.
PRETRAINED_FILES = ("model.safetensors", "pytorch_model.bin", *sharded.INDEXES)


def locate(path: str | os.PathLike[str]) -> str:
    """The file or folder with the tensors: the weights file of a Hugging Face folder, the last
    checkpoint of a run's output folder.

    Raises:
        CheckpointError: it does not exist, or is a folder of an unknown kind.
    """
    path = os.fspath(path)
    if not os.path.exists(path):
        raise CheckpointError(f"{path}: no such file or folder")
    if not os.path.isdir(path) or oneflow_folder.is_oneflow_folder(path):
        return path
    for name in PRETRAINED_FILES:
        if os.path.isfile(os.path.join(path, name)):
            return os.path.join(path, name)
    if os.path.isfile(os.path.join(path, pointer.POINTER)):
        checkpoint = pointer.read(path)
        if oneflow_folder.is_oneflow_folder(checkpoint):
            return str(checkpoint)
        raise CheckpointError(f"{path}: there is no checkpoint {checkpoint.name!r} in this folder")
    if os.path.isfile(os.path.join(path, "config.yaml")):
        raise CheckpointError(f"{path}: the run has no checkpoint yet")
    raise CheckpointError(
        f"{path}: a folder without {', '.join(PRETRAINED_FILES[:2])} or {oneflow_folder.PICKLE}"
    )


def _reader(path: str) -> Any:
    if os.path.isdir(path):
        return oneflow_folder
    if sharded.is_index(path):
        return sharded
    return safetensors_file if is_safetensors(path) else torch_file


def is_safetensors(path: str) -> bool:
    """Whether a file starts with the length of a JSON header and its first brace."""
    start = map_file(path)[: safetensors_file.LENGTH_BYTES + 1]
    return len(start) > safetensors_file.LENGTH_BYTES and start[-1:] == b"{"


def inspect(path: str | os.PathLike[str]) -> Any:
    """The content with a `TensorInfo` for each tensor; no tensor is read.

    Raises:
        CheckpointError: the file cannot be read as any known format.
    """
    path = locate(path)
    return _reader(path).inspect(path)


def load(path: str | os.PathLike[str]) -> Any:
    """The content with a read-only array for each tensor.

    Raises:
        CheckpointError: the file cannot be read as any known format.
    """
    path = locate(path)
    return _reader(path).load(path)
