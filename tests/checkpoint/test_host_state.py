"""States of runs on disk: the same tensors as the engine's own reader gives, and nothing is run."""

from __future__ import annotations

import gc
import os
import pickle
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import oneflow as flow
import pytest

from libai_ext.checkpoint import host_state
from libai_ext.checkpoint.checkpointer import Checkpointer
from libai_ext.checkpoint.errors import CheckpointError

PLACE = (flow.placement("cpu", [0]), flow.sbp.broadcast)
TYPES = ("float64", "float32", "float16", "int64", "int32", "int8", "uint8", "bool")


def state():
    """All kinds of tensors and values that the parts of a checkpoint hold."""
    rng = np.random.default_rng(0)
    shared = flow.tensor(rng.normal(size=(2, 3)).astype(np.float32)).to_global(*PLACE)
    tensors = {
        name: flow.tensor((9 * rng.normal(size=(3, 2))).astype(name)).to_global(*PLACE)
        for name in TYPES
    }
    nan = np.array([np.nan, -np.inf, -0.0, 1e-45], np.float32)
    return OrderedDict(
        **tensors,
        scalar=flow.tensor(2.5).to_global(*PLACE),
        empty=flow.zeros(0, 3).to_global(*PLACE),
        odd=flow.tensor(nan).to_global(*PLACE),
        optimizer={
            "state": {0: {"exp_avg": shared}, 7: {"exp_avg": shared}},
            "param_groups": [{"lr": 1e-3, "betas": [0.9, 0.95], "params": [0, 7], "on": True}],
        },
        last_step=2**40,
        nothing=None,
        pair=(1, "a", b"b", -1),
    )


def restored(folder):
    tensors = []
    return host_state.restore(host_state.describe(folder, tensors), tensors)


def assert_same(found, expected):
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for left, right in zip(found, expected):
            assert_same(left, right)
    elif isinstance(expected, flow.Tensor):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert (found.placement, found.sbp) == (expected.placement, expected.sbp)
        assert found.numpy().tobytes() == expected.numpy().tobytes()
    else:
        assert found == expected


@pytest.mark.parametrize("written_by", ["write", "flow.save"])
def test_the_same_as_the_engine_reads(tmp_path, written_by):
    if written_by == "write":
        host_state.write(host_state.gather(state()), tmp_path / "saved")
    else:
        flow.save(state(), str(tmp_path / "saved"), global_dst_rank=0)
    found = restored(tmp_path / "saved")
    assert_same(found, flow.load(str(tmp_path / "saved"), global_src_rank=0))
    assert_same(found, state())
    assert found["optimizer"]["state"][0] is not found["optimizer"]["state"][7]


def test_no_file_stays_mapped(tmp_path):
    host_state.write(host_state.gather(state()), tmp_path / "saved")
    gc.collect()
    gc.disable()
    try:
        restored(tmp_path / "saved")
        assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    finally:
        gc.enable()


class Call:
    """Makes a folder when it is unpickled by anyone who lets it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def poisoned(path):
    """Values that are not states, by name."""
    return {
        "call": Call(path),
        "call in a list": [1, [Call(path)]],
        "class": OrderedDict,
        "instance": pytest.ExitCode.OK,
        "default": defaultdict(dict),
        "array": np.zeros(3),
        "key": {2.5: 1},
    }


@pytest.mark.parametrize("kind", poisoned(""))
def test_what_is_no_state_is_refused_and_not_run(tmp_path, kind):
    folder = tmp_path / "saved"
    host_state.write(host_state.gather(state()), folder)
    trap = tmp_path / "trap"
    content = {"protocol_version": 1, "data": {"model": poisoned(trap)[kind]}}
    (folder / "pickled_data").write_bytes(pickle.dumps(content, protocol=4))
    with pytest.raises(CheckpointError, match="saved: it names .*, which no state of a run holds"):
        restored(folder)
    assert not trap.exists()


def test_each_part_of_a_checkpoint_is_read_so(tmp_path):
    model = flow.nn.Linear(2, 3).to_global(*PLACE)
    optimizer = flow.optim.AdamW(model.parameters())
    checkpointer = Checkpointer(model, str(tmp_path), optimizer=optimizer)
    checkpointer.save("model_final", 9)
    checkpointer.finish()
    trap = tmp_path / "trap"
    for part in ("model", "optimizer"):
        file = tmp_path / "model_final" / part / "pickled_data"
        sound = file.read_bytes()
        file.write_bytes(pickle.dumps({"protocol_version": 1, "data": {"bias": Call(trap)}}))
        with pytest.raises(CheckpointError, match=f"{part}: it names posix.mkdir"):
            checkpointer.load(str(tmp_path / "model_final"))
        for content in ({"bias": 1}, [], None, {"param_groups": [{}], "state": {}}):
            file.write_bytes(pickle.dumps({"protocol_version": 1, "data": content}))
            with pytest.raises(CheckpointError, match=f"model_final/{part}: not "):
                checkpointer.load(str(tmp_path / "model_final"))
        file.write_bytes(sound)
    checkpointer.load(str(tmp_path / "model_final"))
    assert not trap.exists()
