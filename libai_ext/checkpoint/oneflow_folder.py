"""Read and write the folders of `oneflow.save`, without OneFlow and without executing them.

A folder holds `pickled_data`, a pickle in which each tensor names a sub-folder. The sub-folder
holds `out` (the elements) and `meta` (a protobuf message as text). Each checkpoint of LiBai has one
such folder, `model`.

Source of the format: `oneflow/framework/check_point_v2.py` of OneFlow 0.9.
"""

from __future__ import annotations

import math
import os
import re
from typing import Any

import numpy as np

from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.checkpoint.files import map_file, writing
from libai_ext.checkpoint.pickle_reader import PickleReader
from libai_ext.checkpoint.pickle_writer import PROTOCOL, global_name, integer, text
from libai_ext.checkpoint.plain import Placeholder, map_leaves
from libai_ext.checkpoint.tensors import NUMPY_TYPES, Storage, TensorInfo, check_growth, contiguous
from libai_ext.files.atomic import atomic_folder

PICKLE = "pickled_data"
MODEL = "model"
PROTOCOL_VERSION = 1
TENSOR_FOLDER = re.compile(r"(global_)?tensor_[0-9]+")
DATA_TYPES = {
    "kDouble": "float64",
    "kFloat": "float32",
    "kFloat16": "float16",
    "kBFloat16": "bfloat16",
    "kInt64": "int64",
    "kInt32": "int32",
    "kInt16": "int16",
    "kInt8": "int8",
    "kUInt8": "uint8",
    "kBool": "bool",
}
META_NAMES = {NUMPY_TYPES[name]: kind for kind, name in DATA_TYPES.items() if name != "bfloat16"}
MAX_META = 4096


def is_oneflow_folder(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a folder of `oneflow.save`, or a LiBai checkpoint that holds a model."""
    return os.path.isfile(os.path.join(_model_folder(path), PICKLE))


def _model_folder(path: str | os.PathLike[str]) -> str:
    path = os.fspath(path)
    return path if os.path.exists(os.path.join(path, PICKLE)) else os.path.join(path, MODEL)


def inspect(path: str | os.PathLike[str]) -> Any:
    """What was saved, with a `TensorInfo` for each tensor; no tensor is read.

    Raises:
        CheckpointError: the folder is not one of `oneflow.save`, or is damaged.
    """
    folder = _model_folder(path)
    try:
        content = map_file(os.path.join(folder, PICKLE))
        saved = PickleReader(content).load()
        if type(saved) is not dict or saved.get("protocol_version") != PROTOCOL_VERSION:
            raise CheckpointError("not a pickle of oneflow.save")
        tensors: dict[str, TensorInfo] = {}  # by sub-folder
        tree = map_leaves(saved.get("data"), lambda leaf: _leaf(folder, leaf, tensors))
        check_growth(tree, len(content) + sum(tensor.nbytes for tensor in tensors.values()))
        return tree
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None


def load(path: str | os.PathLike[str]) -> Any:
    """What was saved, with a read-only array for each tensor.

    Raises:
        CheckpointError: the folder is not one of `oneflow.save`, or is damaged.
    """
    tree = inspect(path)
    return map_leaves(tree, lambda leaf: leaf.array() if type(leaf) is TensorInfo else leaf)


def _leaf(folder: str, leaf: Any, tensors: dict[str, TensorInfo]) -> Any:
    """The tensor that a placeholder stands for; any other leaf as it is."""
    if type(leaf) is not Placeholder or leaf.module.split(".")[0] != "oneflow":
        return leaf
    name = leaf.state.get("path") if type(leaf.state) is dict else None
    if leaf.name not in ("Tensor", "Parameter") or type(name) is not str:
        return leaf
    if not TENSOR_FOLDER.fullmatch(name):
        raise CheckpointError(f"a tensor in the folder {name!r:.80}")
    if name not in tensors:
        tensors[name] = _tensor(folder, name)
    return tensors[name]


def _tensor(folder: str, name: str) -> TensorInfo:
    meta = bytes(map_file(os.path.join(folder, name, "meta"))[:MAX_META]).decode("ascii", "replace")
    kind = re.search(r"data_type: (\w+)", meta)
    if kind is None or kind.group(1) not in DATA_TYPES:
        raise CheckpointError(f"{name}/meta names no type that is read")
    shape = tuple(int(dimension) for dimension in re.findall(r"dim: ([0-9]{1,18})\b", meta))
    storage = Storage(name, DATA_TYPES[kind.group(1)], math.prod(shape))
    elements = os.path.join(folder, name, "out")
    if not os.path.isfile(elements) or os.path.getsize(elements) != storage.nbytes:
        raise CheckpointError(f"{name}/out does not have {storage.nbytes} bytes")
    if storage.numel:
        # It does not refer to the storage: the map closes with the last array that views it.
        storage.fetch = lambda: memoryview(map_file(elements))
    else:
        storage.fetch = bytes
    return contiguous(storage, shape)


def save(
    tensors: dict[str, np.ndarray],
    path: str | os.PathLike[str],
    texts: dict[str, str] | None = None,
) -> None:
    """Write a LiBai checkpoint whose `model` is the given state dict, atomically.

    `oneflow.load(path + "/model")` and LiBai's `Checkpointer.load(path)` open it.

    Args:
        texts: name -> content of other files of the checkpoint.

    Raises:
        CheckpointError: the format has no such type of array, `path` is not empty, or writing
            fails.
    """
    with writing(path), atomic_folder(path) as temporary:
        model = os.path.join(temporary, MODEL)
        os.mkdir(model)
        items = b""
        for index, (name, array) in enumerate(tensors.items()):
            if np.asarray(array).dtype not in META_NAMES:
                raise CheckpointError(f"{os.fspath(path)}: {name} has the type {array.dtype}")
            folder = f"tensor_{index}"
            write_tensor(array, os.path.join(model, folder))
            state = b"}" + text("path") + text(folder) + b"s"
            items += text(name) + global_name("oneflow", "Tensor") + b")\x81" + state + b"b"
        with open(os.path.join(model, PICKLE), "wb") as file:
            version = text("protocol_version") + integer(PROTOCOL_VERSION)
            file.write(PROTOCOL + b"}(" + version + text("data") + b"}(" + items + b"uu.")
        for name, content in (texts or {}).items():
            with open(os.path.join(temporary, name), "w", encoding="utf-8") as file:
                file.write(content)


def write_tensor(array: np.ndarray, folder: str) -> None:
    """Make the folder of one tensor.

    Raises:
        KeyError: the format has no such type of array.
        OSError: writing fails.
    """
    array = np.asarray(array, order="C")
    kind = META_NAMES[array.dtype]
    os.mkdir(folder)
    with open(os.path.join(folder, "out"), "wb") as file:
        file.write(array.data)  # array.tofile gives no reason when writing fails
    dimensions = "".join(f"  dim: {dimension}\n" for dimension in array.shape)
    with open(os.path.join(folder, "meta"), "w") as file:
        file.write(f"shape {{\n{dimensions}}}\ndata_type: {kind}\n")
