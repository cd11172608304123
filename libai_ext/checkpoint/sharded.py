"""Weights that Hugging Face has split into several files, with an index that names the file of
each tensor."""

from __future__ import annotations

import json
import os
from typing import Any

from libai_ext.checkpoint import safetensors_file, torch_file
from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.checkpoint.record import read_text
from libai_ext.checkpoint.tensors import TensorInfo

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
MAX_SHARDS = 1000


def is_index(path: str) -> bool:
    """Whether a file has the name of an index; its content is ordinary JSON."""
    return os.path.basename(path) in INDEXES


def inspect(path: str | os.PathLike[str]) -> dict[str, TensorInfo]:
    """The tensors of all shards by name; no tensor is read.

    Args:
        path: an index; its shards are in the same folder.

    Raises:
        CheckpointError: the index or a shard is damaged, or they contradict each other.
    """
    path = os.fspath(path)
    folder, places = os.path.dirname(path), _places(path)
    tensors: dict[str, TensorInfo] = {}
    for shard in dict.fromkeys(places.values()):
        file = os.path.join(folder, shard)
        reader = safetensors_file if shard.endswith(".safetensors") else torch_file
        content = reader.inspect(file)
        expected = {name for name, place in places.items() if place == shard}
        if not isinstance(content, dict) or set(content) != expected:
            raise CheckpointError(f"{file} does not hold the {len(expected)} tensors of {path}")
        tensors.update(content)
    return {name: tensors[name] for name in places}


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """As :func:`inspect`, with read-only arrays."""
    return {name: tensor.array() for name, tensor in inspect(path).items()}


def _places(path: str) -> dict[str, str]:
    """Name of each tensor -> name of its file."""
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{path} has no weight_map")
    shards = set(map(repr, places.values()))
    if len(shards) > MAX_SHARDS:
        raise CheckpointError(f"{path} names {len(shards)} files, more than {MAX_SHARDS}")
    for shard in places.values():
        if not isinstance(shard, str) or os.path.basename(shard) != shard or shard in ("", ".."):
            raise CheckpointError(f"{path}: {shard!r:.80} is not the name of a file beside it")
    return places
