"""Safetensors files, OneFlow folders, and telling formats apart."""

from __future__ import annotations

import os
import shutil
import socket

import numpy as np
import pytest

from libai_ext.checkpoint import formats, oneflow_folder, safetensors_file, torch_writer
from libai_ext.checkpoint.errors import CheckpointError

STATE = {
    "blocks.0.input_layernorm.weight": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "scalar": np.array(2.5),
    "half": np.array([0.5, np.inf], np.float16),
    "count": np.array([-(2**62)]),
    "flags": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float32),
}


def _same_bits(loaded):
    assert set(loaded) == set(STATE)
    for name, array in STATE.items():
        assert loaded[name].dtype == array.dtype and loaded[name].shape == array.shape, name
        assert loaded[name].tobytes() == array.tobytes(), name


def test_safetensors_of_real_torch(golden):
    tensors = safetensors_file.load(golden / "tensors.safetensors")
    expected = np.load(golden / "tensors.npz")
    assert len(tensors) == 9
    for name, array in tensors.items():
        assert array.dtype == expected[name].dtype, name
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
    assert safetensors_file.inspect(golden / "tensors.safetensors")["bfloat16"].dtype == "bfloat16"


def test_safetensors_round_trip(tmp_path):
    safetensors_file.save(STATE, tmp_path / "state.safetensors")
    _same_bits(safetensors_file.load(tmp_path / "state.safetensors"))


def test_special_files_are_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's name is short
    os.mkfifo("pipe.pth")
    server = socket.socket(socket.AF_UNIX)
    server.bind("socket.pth")
    os.symlink("pipe.pth", "link.safetensors")
    for path in ("pipe.pth", "socket.pth", "link.safetensors", "/dev/zero", "/dev/tty"):
        for read in (formats.inspect, formats.load):
            with pytest.raises(CheckpointError, match=f"{path}: not a regular file"):
                read(path)
    server.close()
    oneflow_folder.save(STATE, tmp_path / "checkpoint")
    meta = tmp_path / "checkpoint/model/tensor_0/meta"
    meta.unlink()
    os.mkfifo(meta)
    with pytest.raises(CheckpointError, match="meta: not a regular file"):
        formats.load(tmp_path / "checkpoint")


def test_oneflow_folder_round_trip(tmp_path):
    oneflow_folder.save(STATE, tmp_path / "checkpoint")
    for path in (tmp_path / "checkpoint", tmp_path / "checkpoint" / "model"):
        loaded = oneflow_folder.load(path)
        assert list(loaded) == list(STATE)
        _same_bits(loaded)


def test_oneflow_opens_our_folder_and_we_open_its(tmp_path):
    import oneflow as flow

    oneflow_folder.save(STATE, tmp_path / "ours")
    tensors = flow.load(str(tmp_path / "ours" / "model"))
    assert list(tensors) == list(STATE)
    _same_bits({name: tensor.numpy() for name, tensor in tensors.items()})
    module = flow.nn.Linear(3, 2)
    flow.save({"state": module.state_dict(), "step": 3}, str(tmp_path / "theirs"))
    loaded = oneflow_folder.load(tmp_path / "theirs")
    assert loaded["step"] == 3 and list(loaded["state"]) == ["weight", "bias"]
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(loaded["state"][name], tensor.numpy())


def test_libai_checkpointer_loads_our_folder(tmp_path):
    import oneflow as flow
    from libai.utils.checkpoint import Checkpointer

    module = flow.nn.Linear(3, 2).to_global(flow.placement("cpu", [0]), flow.sbp.broadcast)
    state = {name: np.random.rand(*tensor.shape).astype(np.float32)
             for name, tensor in module.state_dict().items()}  # fmt: skip
    oneflow_folder.save(state, tmp_path / "converted")
    Checkpointer(module).load(str(tmp_path / "converted"), checkpointables=[])
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), state[name])


def test_an_oneflow_folder_cannot_lead_elsewhere_or_lie(tmp_path):
    def damaged(name, change):
        path = tmp_path / name
        oneflow_folder.save({"x": np.zeros(4, np.float32)}, path)
        change(path / "model")
        with pytest.raises(CheckpointError) as error:
            oneflow_folder.load(path)
        assert str(path) in str(error.value)
        return str(error.value)

    def rename(model):
        pickled = (model / "pickled_data").read_bytes()
        (model / "pickled_data").write_bytes(pickled.replace(b"tensor_0", b"../../ab"))

    def huge(model):
        (model / "tensor_0" / "meta").write_text(
            "shape {\n  dim: 99999999999\n}\ndata_type: kFloat"
        )

    assert "'../../ab'" in damaged("path", rename)
    assert "does not have 399999999996 bytes" in damaged("huge", huge)
    assert "out" in damaged("cut", lambda model: os.truncate(model / "tensor_0" / "out", 3))
    assert "No such file" in damaged("gone", lambda model: shutil.rmtree(model / "tensor_0"))
    assert "no type" in damaged("meta", lambda m: (m / "tensor_0" / "meta").write_text("x"))


def test_a_folder_in_use_is_not_overwritten(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "notes").write_text("mine")
    with pytest.raises(CheckpointError, match="cannot be written: Directory not empty"):
        oneflow_folder.save(STATE, tmp_path / "checkpoint")
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_formats_are_told_apart_by_content(golden, tmp_path):
    safetensors_file.save(STATE, tmp_path / "a.pth")
    torch_writer.save(STATE, tmp_path / "b.safetensors")
    oneflow_folder.save(STATE, tmp_path / "c")
    for name in ("a.pth", "b.safetensors", "c"):
        _same_bits(formats.load(tmp_path / name))
    located = formats.locate(golden / "hf_pretrain")
    assert located == str(golden / "hf_pretrain" / "model.safetensors")
    with pytest.raises(CheckpointError, match="a folder without model.safetensors"):
        formats.load(tmp_path)
    with pytest.raises(CheckpointError, match="no such file or folder"):
        formats.load(tmp_path / "none")
