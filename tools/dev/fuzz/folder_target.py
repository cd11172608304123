"""Checkpoints in OneFlow's folders: an input is a tensor's pickle, meta file and elements."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator

import numpy as np
from guard import Target, expect

from libai_ext.checkpoint import formats, host_state, oneflow_folder
from libai_ext.checkpoint.errors import CheckpointError

# Between the three.
CUT = b"\0CUT\0"


def _folders(folder: Path) -> Iterator[bytes]:
    run = folder / "run"
    state = {"model": {"w": host_state.HostTensor(np.ones((2, 3), np.float32))}, "iteration": 5}
    host_state.write(state, run)
    yield _packed(run)
    oneflow_folder.save({"w": np.arange(4)}, folder / "converted")
    yield _packed(folder / "converted/model")


def _packed(folder: Path) -> bytes:
    tensor = folder / "tensor_0"
    parts = (folder / oneflow_folder.PICKLE, tensor / "meta", tensor / "out")
    return CUT.join(part.read_bytes() for part in parts)


def _lay_folder(path: Path, data: bytes) -> None:
    (path / "tensor_0").mkdir(parents=True, exist_ok=True)
    parts = (*data.split(CUT, 2), b"", b"")
    for name, content in zip((oneflow_folder.PICKLE, "tensor_0/meta", "tensor_0/out"), parts):
        (path / name).write_bytes(content)


def _read_folder(path: Path) -> Any:
    tensors: list[Any] = []
    description = host_state.describe(path, tensors)
    return description, [tensor.array() for tensor in tensors], formats.load(path)


def _compare_folder(path: Path, result: Any) -> None:
    """Compare the number of elements with NumPy's, read with the dtype in the meta file."""
    for array in result[1]:
        kind = "<u2" if "kBFloat16" in (path / "tensor_0/meta").read_text("latin1") else array.dtype
        theirs = np.fromfile(path / "tensor_0/out", kind)
        expect(theirs.size == array.size, "it has another number of elements")


FOLDER = Target(
    name="oneflow",
    seeds=_folders,
    read=_read_folder,
    errors=(CheckpointError,),
    lay=_lay_folder,
    compare=_compare_folder,
    words=(
        CUT, b"shape {\n", b"  dim: 2\n", b"}\n", b"data_type: kFloat\n", b"data_type: kBFloat16\n",
        b"dim: 999999999999999999\n", b"\x8c\x08tensor_0", b"\x8c\x04path", b"\x8c\x04data",
        b"\x8c\x10protocol_version", b"coneflow\nTensor\n", b"coneflow\nParameter\n", b")\x81",
        b"}(", b"sb", b"u.", b"\x94", b"h\x00",
    ),
)  # fmt: skip

TARGETS = (FOLDER,)
