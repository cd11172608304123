"""State dicts in host memory, from there on disk, and back.

Copying them is for all ranks together; writing is for one, without OneFlow, so that it may happen
beside the training loop. ``flow.save`` does both at once, tensor by tensor: where the disk refuses
in the middle, rank 0 raises and the others wait for ever.

Reading is for all ranks together, by the reader that runs nothing. ``flow.load`` gives the same
tensors, but runs whatever code a checkpoint names.
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
        """What it is pickled as: OneFlow fills a tensor that was made without arguments, by
        ``Tensor.__new__``, and pickle lets no other class name that."""
        return flow.Tensor


def gather(state: Any) -> Any:
    """``state`` with a :class:`HostTensor` in the place of each tensor; by all ranks together.

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
    """Make the folder that ``oneflow.save`` would, from what :func:`gather` gave on rank 0.

    Raises:
        OSError: the disk refuses.
    """
    os.mkdir(folder)
    with open(os.path.join(folder, PICKLE), "wb") as file:
        _Pickler(file, folder).dump({"protocol_version": PROTOCOL_VERSION, "data": state})


class _Pickler(pickle.Pickler):
    """Writes each tensor into a folder of its own and names that folder in its place."""

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
    """Stands for the tensor of this number in a list that rank 0 has."""

    number: int


def describe(folder: str | os.PathLike[str], tensors: list[TensorInfo]) -> Any:
    """What a folder holds, with a :class:`SavedTensor` in the place of each tensor; for rank 0.

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
    """The state that :func:`describe` found, with a tensor in the place of each SavedTensor; by
    all ranks together.

    The tensors lie on the CPU of rank 0, as those of ``flow.load(folder, global_src_rank=0)``:
    whatever takes them over spreads them by its own placement and sbp.

    Args:
        description: the same on all ranks.
        tensors: those that it numbers, on rank 0; each is dropped once it is read.
    """

    def convert(leaf: Any) -> Any:
        if not isinstance(leaf, SavedTensor):
            return leaf
        local = flow.tensor([])  # other ranks hold nothing, and learn shape and type from rank 0
        if flow.env.get_rank() == 0:
            found = tensors[leaf.number]
            assert found is not None  # each is read once
            local = flow.tensor(found.array())
            tensors[leaf.number] = None
        return local.to_global(placement=placement("cpu", [0]), sbp=flow.sbp.broadcast)

    return map_leaves(description, convert)
