"""State dicts in host memory, and from there on disk.

Copying them is for all ranks together; writing is for one, without OneFlow, so that it may happen
beside the training loop. ``flow.save`` does both at once, tensor by tensor: where the disk refuses
in the middle, rank 0 raises and the others wait for ever.
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

from libai_ext.checkpoint.oneflow_folder import PICKLE, PROTOCOL_VERSION, write_tensor
from libai_ext.checkpoint.plain import map_leaves
from libai_ext.compat.placements import placement


@dataclass(eq=False)
class HostTensor:
    """A tensor's elements on rank 0, nothing on the other ranks."""

    array: np.ndarray | None

    @property
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
