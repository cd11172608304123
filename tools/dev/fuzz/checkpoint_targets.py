"""Checkpoints in one file: those of PyTorch, the pickles in them, and safetensors."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import os
import pickle
import pickletools
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, Iterator
from unittest import mock

import numpy as np
from guard import Target, expect
from safetensors import safe_open
from second_unpickler import loads, same

from libai_ext.checkpoint import (
    formats,
    safetensors_file,
    torch_writer,
)
from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.checkpoint.files import map_file
from libai_ext.checkpoint.pickle_reader import PickleReader
from libai_ext.checkpoint.torch_objects import TORCH_CONSTRUCTORS, Storages
from libai_ext.checkpoint.zip_reader import ZipReader

GOLDEN = Path("tests/golden")
TREE = OrderedDict(
    model={"weight": np.arange(6, dtype=np.float32).reshape(2, 3), "count": np.array(3)},
    epoch=7,
    name="vit",
    rate=0.5,
    none=None,
)


def _written(folder: Path, save: Any, tree: Any) -> bytes:
    path = folder / "written"
    save(tree, path)
    return path.read_bytes()


def _torch_files(folder: Path) -> Iterator[bytes]:
    for name in ("tensors.pth", "tensors_protocol4.pth", "tensors_legacy.pth"):
        yield (GOLDEN / name).read_bytes()
    yield _written(folder, torch_writer.save, TREE)


# Pickles of PyTorch's files, each in a valid archive with the storages that it refers to


def _pickles(folder: Path) -> Iterator[bytes]:
    for content in _torch_files(folder):
        if content.startswith(b"PK"):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
                yield archive.read(name)
    for protocol in range(2, 6):
        yield pickle.dumps([{"a": (1, -2, 2**70, 1.5, None, True), 3: b"x"}, {"y"}], protocol)


def _lay_archive(path: Path, data: bytes) -> None:
    storages = Storages()
    with contextlib.suppress(Exception):  # raised again when the archive is read
        PickleReader(data, 0, TORCH_CONSTRUCTORS, storages.persistent_load).load()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", data)
        for key, storage in storages.by_key.items():
            if storage.nbytes < 1 << 16 and len(key) < 100:
                archive.writestr(f"a/data/{key}", bytes(storage.nbytes))


def _compare_pickle(path: Path, tree: Any) -> None:
    with zipfile.ZipFile(path) as archive:
        data = archive.read("a/data.pkl")
    reader = PickleReader(data, 0, TORCH_CONSTRUCTORS, Storages().persistent_load)
    ours = reader.load()
    try:
        theirs = loads(data)
        *_, (_, _, last) = pickletools.genops(data)
    except Exception:  # not compared; Python's readers are stricter on frames, names and more
        return
    expect(last == reader.position - 1, "the two readers of pickles end at different places")
    expect(same(ours, theirs), f"{ours!r:.200} is {theirs!r:.200} to Python")


PICKLE = Target(
    name="pickle",
    seeds=_pickles,
    read=formats.load,
    errors=(CheckpointError,),
    lay=_lay_archive,
    compare=_compare_pickle,
    words=(
        b"\x80\x02", b"}(", b"(tQ", b"\x85R", b"\x86R", b"\x87R", b")R", b"}\x92", b"sb", b"u.",
        b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_parameter\n",
        b"ctorch\nFloatStorage\n", b"ctorch\nBFloat16Storage\n", b"ctorch\nBoolStorage\n",
        b"ccollections\nOrderedDict\n)R", b"ctorch\nSize\n", b"c_codecs\nencode\n",
        b"cos\nsystem\n", b"X\7\0\0\0storage", b"X\1\0\0\x000", b"\x8a\x09\0\0\0\0\0\0\0\x80\0",
        b"J\xff\xff\xff\x7f", b"M\xff\xff", b"\x94", b"q\0", b"h\0", b"\x93", b"I12\n",
        b"\x8f(", b"\x90", b"(\x91", b"2", b"0", b"1", b"(o",
    ),
)  # fmt: skip


# Whole files of PyTorch


def _without_checksums(content: bytes) -> bytes:
    """The same archive with checksums 0, which means none: no mutation makes them wrong."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with mock.patch.object(zipfile, "crc32", lambda data, checksum=0: 0):
        with zipfile.ZipFile(out, "w") as archive:
            for name, entry in entries.items():
                archive.writestr(zipfile.ZipInfo(name), entry)  # without a time
    return out.getvalue()


def _archives(folder: Path) -> Iterator[bytes]:
    for content in _torch_files(folder):
        yield content
        if content.startswith(b"PK"):
            yield _without_checksums(content)
    yield _written(folder, _save_deflated, b"\x80\x02}X\x01\0\0\0aK\x01s.")


def _save_deflated(pickled: bytes, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo("a/data.pkl"), pickled, zipfile.ZIP_DEFLATED)


def _compare_archive(path: Path, tree: Any) -> None:
    data = map_file(path)
    if not data[:2] == b"PK":
        return
    archive = ZipReader(data)
    try:
        ours = {name: bytes(archive.read(name)) for name in archive.entries}
        with zipfile.ZipFile(path) as other:
            theirs = {name: other.read(name) for name in other.namelist()}
    except Exception:  # an unused entry is damaged, or zipfile is stricter
        return
    if all(name.isascii() for name in ours):
        expect(ours == theirs, "zipfile finds other entries in it")


TORCH = Target(
    name="torch",
    seeds=_archives,
    read=formats.load,
    errors=(CheckpointError,),
    compare=_compare_archive,
    words=(
        b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7", b"data.pkl", b"byteorder", b"data/0",
        b"little", b"\x01\x00\x10\x00", b"\xff\xff\xff\xff",
        b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"\x80\x02M\xe9\x03.",
        b"X\x0d\x00\x00\x00little_endian",
    ),
)  # fmt: skip


# safetensors


def _safetensors(folder: Path) -> Iterator[bytes]:
    arrays = {"a": np.ones((2, 3), np.float16), "b": np.array([True, False]), "c": np.array(1)}
    save = functools.partial(safetensors_file.save, metadata={"x": "y"})
    for content in ((GOLDEN / "tensors.safetensors").read_bytes(), _written(folder, save, arrays)):
        yield content
        yield content[8:]


def _lay_safetensors(path: Path, data: bytes) -> None:
    """Write the input; if it begins with a header, write the header's length before it."""
    header = re.match(rb"\{.*?\}\} *", data, re.DOTALL)
    with contextlib.suppress(Exception):  # only branches in Python guide the fuzzer
        _describe((header[0] if header else data[8:]).decode())
    path.write_bytes((len(header[0]).to_bytes(8, "little") if header else b"") + data)


def _describe(header: str) -> None:
    python: Any = json  # its parts that are written in Python
    decoder = python.JSONDecoder()
    decoder.parse_string = python.decoder.py_scanstring
    content, _ = python.scanner.py_make_scanner(decoder)(header, 0)
    for name, entry in content.items():
        if name != safetensors_file.METADATA:
            begin, end = entry["data_offsets"]
            size = {"F16": 2, "F32": 4, "I64": 8, "BOOL": 1}[entry["dtype"]]
            if begin + math.prod(entry["shape"]) * size != end:
                raise ValueError


def _read_safetensors(path: Path) -> Any:
    return safetensors_file.metadata(path), safetensors_file.load(path)


def _compare_safetensors(path: Path, result: Any) -> None:
    described, arrays = result
    with safe_open(os.fspath(path), "np") as file:
        expect(set(file.keys()) == set(arrays), "the library finds other names in it")
        expect((file.metadata() or {}) == described, "the library finds other texts in it")
        types = {name: info.dtype for name, info in safetensors_file.inspect(path).items()}
        for name, array in arrays.items():
            if types[name] not in ("bfloat16", "bool"):  # NumPy lacks one, the other is checked
                theirs = file.get_tensor(name)
                expect(theirs.dtype == array.dtype and theirs.shape == array.shape, name)
                expect(theirs.tobytes() == array.tobytes(), f"{name} has other elements")


SAFETENSORS = Target(
    name="safetensors",
    seeds=_safetensors,
    read=_read_safetensors,
    errors=(CheckpointError,),
    lay=_lay_safetensors,
    compare=_compare_safetensors,
    words=(
        b'"dtype"', b'"shape"', b'"data_offsets"', b'"__metadata__"', b'"F32"', b'"BF16"', b'"I64"',
        b'"BOOL"', b'"U8"', b'"F8_E4M3"', b'{"', b'":{', b'},"', b"[0,", b"[]", b"null", b"-1",
        b"18446744073709551615", b"9223372036854775808", b"\\u0000", b"\\ud800", b"   ",
    ),
)  # fmt: skip

TARGETS = (PICKLE, TORCH, SAFETENSORS)
