"""Reading `torch.save` files: values, types, structure, memory."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from libai_ext.checkpoint import safetensors_file, torch_file, torch_writer
from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.checkpoint.plain import Placeholder
from libai_ext.checkpoint.tensors import TensorInfo

TENSOR_FILES = ("tensors.pth", "tensors_legacy.pth", "tensors_protocol4.pth")


@pytest.mark.parametrize("name", TENSOR_FILES)
def test_every_element_type_and_stride(golden, name):
    tensors = torch_file.load(golden / name)["tensors"]
    expected = np.load(golden / "tensors.npz")
    assert list(tensors) == expected.files
    for key, array in tensors.items():
        assert array.dtype == expected[key].dtype, key
        assert array.shape == expected[key].shape, key
        np.testing.assert_array_equal(array, expected[key], err_msg=key)


@pytest.mark.parametrize("name", TENSOR_FILES)
def test_plain_values_and_placeholders(golden, name):
    tree = torch_file.load(golden / name)
    assert tree["plain"] == [1, -(2**40), 2.5, "text", b"bytes", True, None, (1, (2, 3)), {}, []]
    assert tree["size"] == (3, 4) and type(tree["size"]) is tuple
    namespace = tree["namespace"]
    assert (namespace.module, namespace.name) == ("argparse", "Namespace")
    assert namespace.state == {"lr": 0.1, "names": ["a", "b"]}
    for key, what in (("dtype", ("torch", "float16")), ("set", ("builtins", "set"))):
        placeholder = tree[key]
        assert type(placeholder) is Placeholder
        module = placeholder.module.replace("__builtin__", "builtins")
        assert (module, placeholder.name) == what
    assert type(tree["function"]) is Placeholder


@pytest.mark.parametrize("name", TENSOR_FILES)
def test_views_share_the_memory_of_their_storage(golden, name):
    tensors = torch_file.load(golden / name)["tensors"]
    for view in ("transposed", "row", "column", "every_other"):
        assert np.shares_memory(tensors["float32"], tensors[view]), view
    assert not np.shares_memory(tensors["float32"], tensors["int32"])
    assert not tensors["float32"].flags.writeable


def test_inspect_tells_the_original_type_and_reads_no_tensor(golden, tmp_path):
    content = (golden / "tensors.pth").read_bytes()
    info = torch_file.inspect(golden / "tensors.pth")["tensors"]["bfloat16"]
    assert type(info) is TensorInfo
    assert (info.dtype, info.shape, info.nbytes) == ("bfloat16", (4,), 8)
    assert info.array().dtype == np.float32
    # A wrong byte in a tensor stops a load; inspection does not even see it.
    payload = np.float64([1.5, -2.25]).tobytes()
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(content.replace(payload, b"\1" + payload[1:]))
    assert torch_file.inspect(damaged)["tensors"]["float64"].shape == (2,)
    with pytest.raises(CheckpointError, match=r"damaged\.pth: .*data/0.* checksum"):
        torch_file.load(damaged)


def test_a_file_without_checksums_is_read(golden, tmp_path):
    """torch.serialization.set_crc32_options(False) writes zeros."""
    content = bytearray((golden / "tensors.pth").read_bytes())
    position = content.find(b"PK\1\2")
    while position >= 0:
        content[position + 16 : position + 20] = bytes(4)
        position = content.find(b"PK\1\2", position + 1)
    path = tmp_path / "unchecked.pth"
    path.write_bytes(content)
    np.testing.assert_array_equal(torch_file.load(path)["tensors"]["int64"], [-(2**62), 3])


def test_compressed_entries_are_read(golden, tmp_path):
    path = tmp_path / "compressed.pth"
    source = zipfile.ZipFile(golden / "tensors.pth")
    with source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    expected = np.load(golden / "tensors.npz")
    for key, array in torch_file.load(path)["tensors"].items():
        np.testing.assert_array_equal(array, expected[key], err_msg=key)


def test_order_and_container_types_are_kept(golden):
    model = torch_file.load(golden / "fb_pretrain.pth")["model"]
    assert type(model) is OrderedDict
    assert list(model)[:5] == [
        "cls_token", "pos_embed", "mask_token", "decoder_pos_embed", "patch_embed.proj.weight"
    ]  # fmt: skip


def test_peak_memory_is_a_tensor_above_the_result(tmp_path):
    """400 MB in 25 tensors: mapped, they cost nothing; as bfloat16, their widened result."""
    state = OrderedDict((f"w{i}", np.full((4 << 20,), i, np.float32)) for i in range(25))
    torch_writer.save(state, tmp_path / "big.pth")
    safetensors_file.save(state, tmp_path / "big.safetensors")
    script = (
        "import sys, tracemalloc; from libai_ext.checkpoint import formats\n"
        "tracemalloc.start(); tree = formats.load(sys.argv[1])\n"
        "assert float(tree['w24'][-1]) == 24\n"
        "print(tracemalloc.get_traced_memory()[1])"
    )
    for name in ("big.pth", "big.safetensors"):
        command = [sys.executable, "-c", script, str(tmp_path / name)]
        peak = int(subprocess.run(command, capture_output=True, check=True).stdout)
        assert peak < 16 << 20, (name, peak)


def test_neither_torch_nor_oneflow_is_imported(golden):
    script = (
        "import sys\n"
        "sys.modules.update(torch=None, oneflow=None, transformers=None)  # imports fail\n"
        "from libai_ext.checkpoint import formats\n"
        "from projects.MAE.weights.files import read_weights\n"
        "from projects.MAE.weights.packing import Heads\n"
        "weights, _ = read_weights(sys.argv[1], Heads(3, 2))\n"
        "print(len(weights))"
    )
    command = [sys.executable, "-c", script, str(golden / "fb_pretrain.pth")]
    assert subprocess.run(command, capture_output=True, check=True).stdout == b"50\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"hello", "not a file that torch.save wrote"),
        (b"\x80\x02}.", "a pickle, but not one that torch.save wrote"),
        (b"PK\3\4" + bytes(60), "cut short"),
    ],
)
def test_what_is_no_checkpoint_says_so(tmp_path, content, message):
    path = tmp_path / "some.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as error:
        torch_file.load(path)
    assert str(path) in str(error.value)


def test_a_missing_file_a_folder_and_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    for name, message in (
        ("none.pth", "No such file"),
        ("", "Is a dir"),
        ("pipe.pth", "not a regular"),
    ):
        with pytest.raises(CheckpointError, match=message):
            torch_file.load(tmp_path / name)
