"""Building blocks of hostile files: archives, legacy files and pickled tensors."""

from __future__ import annotations

import io
import pickle
import zipfile

from libai_ext.checkpoint.pickle_writer import global_name, integer, integers, text
from libai_ext.checkpoint.torch_file import LEGACY_MAGIC, LEGACY_PROTOCOL

# One name is enough to recognise a style.
NAME = "blocks.0.norm1.weight"


def zip_file(pickle_bytes, storages=None, folder="archive", extra=(), method=zipfile.ZIP_STORED):
    """A torch.save archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr(f"{folder}/data.pkl", pickle_bytes)
        for key, content in (storages or {}).items():
            archive.writestr(f"{folder}/data/{key}", content)
        for name, content in extra:
            archive.writestr(name, content)
    return buffer.getvalue()


def legacy_file(pickle_bytes, keys=(), tail=b"", system=None):
    """A file of the format from before PyTorch 1.6."""
    system = {"little_endian": True} if system is None else system
    start = (pickle.dumps(value, 2) for value in (LEGACY_MAGIC, LEGACY_PROTOCOL, system))
    return b"".join(start) + pickle_bytes + pickle.dumps(list(keys), 2) + tail


def tensor(numel=4, offset=0, size=(2, 2), stride=(2, 1), key="0", storage="FloatStorage"):
    """Opcodes of one tensor; numbers may be any opcodes (bytes)."""

    def numbers(values):
        return values if isinstance(values, bytes) else integers(values)

    def number(value):
        return value if isinstance(value, bytes) else integer(value)

    persistent = text("storage") + global_name("torch", storage) + text(key) + text("cpu")
    return (
        global_name("torch._utils", "_rebuild_tensor_v2") + b"((" + persistent + number(numel)
        + b"tQ" + number(offset) + numbers(size) + numbers(stride)
        + b"\x89" + global_name("collections", "OrderedDict") + b")RtR"
    )  # fmt: skip


def state_dict(value):
    """A pickle of {NAME: value}: a checkpoint that is read when the value is a sound tensor."""
    return b"\x80\x02}" + text(NAME) + value + b"s."
