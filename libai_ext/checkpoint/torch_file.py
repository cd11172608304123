"""Read `torch.save` files (`.pth`, `.pt`, `.bin`) without PyTorch and without executing them.

Both formats are read: the zip one, and the legacy one from before PyTorch 1.6. The result holds
tensors and plain containers (dict, OrderedDict, list, tuple, str, bytes, numbers, bool, None).
Anything else, such as an `argparse.Namespace`, becomes an inert `Placeholder`. The file is mapped,
not read: its arrays are read-only views, and processes share the page cache.

Source of the formats: `torch/serialization.py`.
"""

from __future__ import annotations

import mmap
import os
from functools import partial
from typing import Any

from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.checkpoint.files import map_file
from libai_ext.checkpoint.pickle_reader import PickleReader
from libai_ext.checkpoint.plain import map_leaves
from libai_ext.checkpoint.tensors import TensorInfo, check_growth
from libai_ext.checkpoint.torch_objects import TORCH_CONSTRUCTORS, Storages
from libai_ext.checkpoint.zip_reader import LOCAL_SIGNATURE, ZipReader

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
PICKLE_SIGNATURE = 0x80
MAX_PICKLE = 64 << 20  # tensors are outside it; a ViT-H with its optimizer state takes 1 MB


def inspect(path: str | os.PathLike[str]) -> Any:
    """As `load`, with a `TensorInfo` for each array; no tensor is read.

    Raises:
        CheckpointError: the file is not a `torch.save` file, or is damaged or hostile.
    """
    path = os.fspath(path)
    data = map_file(path)
    try:
        if data[: len(LOCAL_SIGNATURE)] == LOCAL_SIGNATURE:
            tree = _open_zip(data)
        elif data[0] == PICKLE_SIGNATURE:
            tree = _open_legacy(data)
        else:
            raise CheckpointError("not a file that torch.save wrote")
        check_growth(tree, len(data))
        return tree
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def load(path: str | os.PathLike[str]) -> Any:
    """Read a `torch.save` file.

    Returns:
        The saved object. Tensors become read-only arrays of the same shape and type, which share
        memory if the tensors did; bfloat16, which NumPy lacks, becomes float32 exactly. The content
        of a `Placeholder` stays as the file describes it.

    Raises:
        CheckpointError: the file is not a `torch.save` file, or is damaged or hostile.
    """
    tree = inspect(path)
    try:
        return map_leaves(tree, lambda leaf: leaf.array() if type(leaf) is TensorInfo else leaf)
    except CheckpointError as error:
        raise CheckpointError(f"{os.fspath(path)}: {error}") from None


def _open_zip(data: mmap.mmap) -> Any:
    archive = ZipReader(data)
    pickles = [name for name in archive.entries if name.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
        raise CheckpointError("not a PyTorch archive: it does not have one */data.pkl")
    folder = pickles[0][: -len("data.pkl")]
    if folder + "constants.pkl" in archive.entries:
        raise CheckpointError("a TorchScript program, not a checkpoint: save its state_dict()")
    byteorder = folder + "byteorder"
    if byteorder in archive.entries and bytes(archive.read(byteorder)) != b"little":
        raise CheckpointError("written on a big-endian machine, which is not supported")
    if archive.entries[pickles[0]].size > MAX_PICKLE:
        raise CheckpointError(f"its pickle is larger than {MAX_PICKLE:,} bytes")
    storages = Storages()
    pickle = bytes(archive.read(pickles[0]))
    tree = PickleReader(pickle, 0, TORCH_CONSTRUCTORS, storages.persistent_load).load()
    for key, storage in storages.by_key.items():
        name = f"{folder}data/{key}"
        entry = archive.entries.get(name)
        if entry is None or entry.size != storage.nbytes:
            raise CheckpointError(f"the archive has no {name!r:.80} of {storage.nbytes} bytes")
        storage.fetch = partial(archive.read, name)
    return tree


def _open_legacy(data: mmap.mmap) -> Any:
    """Magic number, protocol, system, object and storage keys as pickles; then the storages."""
    position = 0

    def next_pickle(**reader_options: Any) -> Any:
        nonlocal position
        reader = PickleReader(data, position, **reader_options)
        result = reader.load()
        position = reader.position
        return result

    if next_pickle() != LEGACY_MAGIC:
        raise CheckpointError("a pickle, but not one that torch.save wrote")
    if next_pickle() != LEGACY_PROTOCOL:
        raise CheckpointError("a legacy file of unknown protocol")
    system = next_pickle()
    if type(system) is not dict or system.get("little_endian") is not True:
        raise CheckpointError("written on a big-endian machine, which is not supported")
    storages = Storages()
    tree = next_pickle(constructors=TORCH_CONSTRUCTORS, persistent_load=storages.persistent_load)
    keys = next_pickle()
    if type(keys) is not list or any(type(key) is not str for key in keys):
        raise CheckpointError("the list of storages is not a list of names")
    if sorted(keys) != sorted(storages.by_key):
        raise CheckpointError("the list of storages does not name those that the tensors use")
    view = memoryview(data)
    for key in keys:
        storage = storages.by_key[key]
        numel = int.from_bytes(data[position : position + 8], "little")
        start = position + 8
        position = start + storage.nbytes
        if numel != storage.numel or position > len(data):
            raise CheckpointError(f"the file is cut short in storage {key!r:.80}")
        storage.fetch = partial(_part, view, start, position)
    return tree


def _part(view: memoryview, start: int, end: int) -> memoryview:
    return view[start:end]
