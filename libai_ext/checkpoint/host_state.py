"""Copy state dicts to host memory, write them to disk, and read them back.

All ranks copy together. Rank 0 writes alone, without OneFlow, so that training can continue.
``flow.save`` does both at once, tensor by tensor: if the disk fails, rank 0 raises and the others
wait forever.

All ranks read together, with the reader that executes no code. ``flow.load`` gives the same
tensors, but executes code that a checkpoint names.
"""

from __future__ import annotations

import copyreg
import os
import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import oneflow as flow
from omegaconf import OmegaConf

from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.checkpoint.oneflow_folder import PICKLE, PROTOCOL_VERSION, inspect, write_tensor
from libai_ext.checkpoint.plain import Placeholder, dictionary_keys, map_leaves
from libai_ext.checkpoint.tensors import TensorInfo
from libai_ext.compat.placements import placement


@dataclass(eq=False)
class HostTensor:
    """A tensor's elements on rank 0, nothing on the other ranks."""

    array: np.ndarray | None

    @property  # type: ignore[misc]  # it can be set in object
    def __class__(self):
        """Pickled as a Tensor: ``Tensor.__new__`` makes an empty one that OneFlow fills, and pickle
        allows this call for tensors only."""
        return flow.Tensor


def gather(state: Any) -> Any:
    """Replace each tensor in ``state`` by a :class:`HostTensor`; all ranks call it.

    The arrays are copies: ``Tensor.numpy()`` of a tensor on the CPU shares its memory, and the
    next step would change it.
    """
    return map_leaves(state, _to_host)


def _to_host(leaf: Any) -> Any:
    if OmegaConf.is_config(leaf):  # such as an optimizer's betas
        return OmegaConf.to_container(leaf)
    if not isinstance(leaf, flow.Tensor):
        return leaf
    if leaf.is_global:
        on_cpu = leaf.to_global(placement=placement("cpu", leaf.placement.ranks), sbp=leaf.sbp)
        leaf = on_cpu.to_global(placement=placement("cpu", [0]), sbp=flow.sbp.broadcast).to_local()
    return HostTensor(np.array(leaf.numpy()) if flow.env.get_rank() == 0 else None)


def write(state: Any, folder: str | os.PathLike[str]) -> None:
    """Write the result of :func:`gather` on rank 0, as ``oneflow.save`` does.

    Raises:
        OSError: writing fails.
    """
    os.mkdir(folder)
    with open(os.path.join(folder, PICKLE), "wb") as file:
        _Pickler(file, folder).dump({"protocol_version": PROTOCOL_VERSION, "data": state})


class _Pickler(pickle.Pickler):
    """Writes each tensor into its own folder and pickles the folder's name."""

    def __init__(self, file, folder):
        super().__init__(file, protocol=4)
        self.folder = folder
        self.count = 0

    def reducer_override(self, value):
        if type(value) is not HostTensor:
            return NotImplemented
        name = f"tensor_{self.count}"
        self.count += 1
        write_tensor(value.array, os.path.join(self.folder, name))
        return copyreg.__newobj__, (flow.Tensor,), {"path": name}


@dataclass(frozen=True)
class SavedTensor:
    """The number of a tensor in a list on rank 0."""

    number: int


def describe(folder: str | os.PathLike[str], tensors: list[TensorInfo]) -> Any:
    """The content of a folder with a :class:`SavedTensor` for each tensor; rank 0 calls it.

    Args:
        tensors: the tensors are appended to it.

    Raises:
        CheckpointError: the folder is damaged, or holds more than tensors and plain values.
    """

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, Placeholder):
            raise CheckpointError(
                f"{os.fspath(folder)}: it names {leaf.module:.80}.{leaf.name:.80}, which no state "
                "of a run holds"
            )
        if not isinstance(leaf, TensorInfo):
            return leaf
        tensors.append(leaf)
        return SavedTensor(len(tensors) - 1)

    tree = inspect(folder)
    for key in dictionary_keys(tree):
        convert(key)
    return map_leaves(tree, convert)


def restore(description: Any, tensors: list[TensorInfo | None]) -> Any:
    """Replace each SavedTensor of :func:`describe` by its tensor; all ranks call it.

    The tensors are on the CPU of rank 0, as after ``flow.load(folder, global_src_rank=0)``;
    ``load_state_dict`` distributes them.

    Args:
        description: the same on all ranks.
        tensors: on rank 0, the list; each tensor is dropped after reading.
    """

    def convert(leaf: Any) -> Any:
        if not isinstance(leaf, SavedTensor):
            return leaf
        local = flow.tensor([])  # other ranks get shape and type from rank 0
        if flow.env.get_rank() == 0:
            found = tensors[leaf.number]
            assert found is not None  # each is read once
            local = flow.tensor(found.array())
            tensors[leaf.number] = None
        return local.to_global(placement=placement("cpu", [0]), sbp=flow.sbp.broadcast)

    return map_leaves(description, convert)
