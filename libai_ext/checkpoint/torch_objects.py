"""Stand-ins for the functions that a `torch.save` pickle calls to rebuild tensors.

Source of names and arguments: `torch/_utils.py` and `torch/serialization.py`.
"""

from __future__ import annotations

from typing import Any

from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.checkpoint.pickle_reader import PickleReader
from libai_ext.checkpoint.plain import Constructor, Placeholder
from libai_ext.checkpoint.tensors import MAX_ELEMENTS, Storage, TensorInfo

STORAGE_TYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}


def _rebuild_tensor(_: PickleReader, args: tuple[Any, ...]) -> TensorInfo:
    """_rebuild_tensor(storage, offset, size, stride); v2 adds requires_grad, hooks, metadata."""
    storage, offset, size, stride = args[:4]
    if type(storage) is not Storage or type(size) is not tuple or type(stride) is not tuple:
        raise CheckpointError("a tensor is not built from a storage, a size and a stride")
    return TensorInfo(storage, offset, size, stride)


def _rebuild_parameter(_: PickleReader, args: tuple[Any, ...]) -> TensorInfo:
    """_rebuild_parameter(data, requires_grad, hooks); a second form adds Python attributes."""
    if type(args[0]) is not TensorInfo:
        raise CheckpointError("a parameter is not built from a tensor")
    return args[0]


def _size(_: PickleReader, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """torch.Size(tuple)."""
    (size,) = args
    if type(size) is not tuple:
        raise CheckpointError("a torch.Size is not built from a tuple")
    return size


TORCH_CONSTRUCTORS: dict[tuple[str, str], Constructor] = {
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch", "Size"): _size,
}


class Storages:
    """The storages that a pickle refers to by persistent id, each built once."""

    def __init__(self) -> None:
        self.by_key: dict[str, Storage] = {}

    def persistent_load(self, identifier: Any) -> Storage | Placeholder:
        """The storage of ("storage", type, key, device, numel), with legacy view data last."""
        if type(identifier) is not tuple or not identifier:
            raise CheckpointError("a persistent id is not a tuple")
        if identifier[0] == "module":  # legacy: a class with its source code
            return identifier[1] if type(identifier[1]) is Placeholder else Placeholder("", "")
        if identifier[0] != "storage" or len(identifier) not in (5, 6):
            raise CheckpointError("a persistent id that is not a storage's")
        _, kind, key, _, numel, *view = identifier
        if type(kind) is not Placeholder:
            raise CheckpointError("a storage has no type")
        if kind.name not in STORAGE_TYPES:
            raise CheckpointError(f"storages of type {kind.name!r:.80} are not read")
        if type(key) is not str or type(numel) is not int or not 0 <= numel < MAX_ELEMENTS:
            raise CheckpointError("a storage is not described by a text key and a size")
        if view not in ([], [None]):
            raise CheckpointError("views of storages, which PyTorch wrote before 0.4, are not read")
        dtype = STORAGE_TYPES[kind.name]
        storage = self.by_key.setdefault(key, Storage(key, dtype, numel))
        if (storage.dtype, storage.numel) != (dtype, numel):
            raise CheckpointError(f"storage {key!r:.80} is described in two ways")
        return storage
