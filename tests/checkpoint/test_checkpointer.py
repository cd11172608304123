"""Native checkpoints: what is saved comes back, damage is found, the disk may refuse."""

from __future__ import annotations

import json
import os
import shutil
import time

import numpy as np
import oneflow as flow
import pytest
from checkpoints import (
    PLACE,
    Average,
    checkpointer_of,
    model_of,
    resumed,
    save,
    two_checkpoints,
    weight,
)
from oneflow import nn

from libai_ext.checkpoint import host_state, manifest, oneflow_folder, record
from libai_ext.checkpoint.checkpointer import Checkpointer
from libai_ext.checkpoint.errors import CheckpointError


@pytest.fixture
def folder(tmp_path):
    """Checkpoints after iterations 3 and 7; their weights are 3 and 7."""
    return two_checkpoints(tmp_path)


def test_all_comes_back(tmp_path):
    checkpointer = checkpointer_of(tmp_path, 2.0)
    checkpointer.plain["best"] = {"value": 0.5}
    save(checkpointer, "model_0000004", 4)
    other = checkpointer_of(tmp_path)
    path = other.get_checkpoint_file()
    assert path == str(tmp_path / "model_0000004")
    assert other.load(path) == {"best": {"value": 0.5}, "iteration": 4}
    assert weight(other) == 2.0
    state = other.checkpointables["ema"].state
    assert state["decay"] == 0.9
    np.testing.assert_array_equal(state["weights"]["w"].numpy(), [2, 2, 2])


def test_the_record_is_part_of_each_checkpoint(tmp_path):
    checkpointer = checkpointer_of(tmp_path)
    checkpointer.record = {"model": {"depth": 2}, "classes": ["a", "\udcff"]}
    for name, latest in (("model_0000004", True), ("model_best", False)):
        save(checkpointer, name, 4, is_latest=latest)
        folder = tmp_path / name
        assert record.read(str(folder)) == {"version": 1, **checkpointer.record}
        manifest.verify(folder)
    flip(folder / "record.json")
    with pytest.raises(CheckpointError, match="record.json: not what was written"):
        manifest.verify(folder)


def test_the_copy_is_taken_before_save_returns(tmp_path):
    """Tensor.numpy() shares memory: the thread must not see what the next step writes there."""
    checkpointer = checkpointer_of(tmp_path, 1.0)
    gathered = host_state.gather(checkpointer.model.state_dict())
    checkpointer.model.weight.numpy()[...] = 9.0
    np.testing.assert_array_equal(gathered["weight"].array, np.ones((3, 2)))


def test_other_readers_open_it(folder):
    """OneFlow itself, and the reader that runs nothing."""
    path = str(folder / "model_0000007" / "model")
    loaded = flow.load(path, global_src_rank=0)
    assert list(loaded) == ["weight", "bias"]
    plain = oneflow_folder.load(path)
    for name, tensor in loaded.items():
        np.testing.assert_array_equal(tensor.numpy(), plain[name])


def test_a_missing_part_is_an_error(folder):
    checkpointer = Checkpointer(model_of(0.0), str(folder), optimizer=Average(0.0))
    with pytest.raises(CheckpointError, match="has no optimizer"):
        checkpointer.load(checkpointer.get_checkpoint_file())
    checkpointer.load(checkpointer.get_checkpoint_file(), checkpointables=[])
    assert weight(checkpointer) == 7


def test_another_model_is_an_error(folder):
    checkpointer = Checkpointer(nn.Linear(5, 3).to_global(*PLACE), str(folder))
    with pytest.raises(CheckpointError, match="another model.*weight"):
        checkpointer.load(checkpointer.get_checkpoint_file())


def test_only_so_many_stay(tmp_path):
    checkpointer = checkpointer_of(tmp_path, max_to_keep=2)
    save(checkpointer, "model_best", 1, is_latest=False)
    for iteration in (1, 3, 5):
        save(checkpointer, f"model_{iteration:07d}", iteration)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["last_checkpoint", "model_0000003", "model_0000005", "model_best"]


def test_what_a_run_left_ahead_does_not_count(folder):
    """After going back to iteration 3, the checkpoint of 7 must not push out the new one."""
    (folder / "last_checkpoint").write_text("model_0000003")
    checkpointer = checkpointer_of(folder, max_to_keep=1)
    save(checkpointer, "model_0000005", 5, value=5)
    assert not (folder / "model_0000003").exists()
    assert resumed(folder) == 5


def test_best_is_replaced_and_does_not_become_the_latest(folder):
    checkpointer = checkpointer_of(folder)
    for iteration in (8, 9):
        save(checkpointer, "model_best", iteration, value=iteration, is_latest=False)
    assert resumed(folder) == 7
    manifest.verify(folder / "model_best")
    checkpointer.load(str(folder / "model_best"))
    assert weight(checkpointer) == 9


def test_without_exchange_of_names(folder, monkeypatch):
    """NFS: two renames, and between them the former one under another name that is found."""
    monkeypatch.setattr("libai_ext.files.atomic._exchange", lambda *names: False)
    save(checkpointer_of(folder), "model_0000007", 7, value=70)
    assert resumed(folder) == 70
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == [
        "model_0000003",
        "model_0000007",
    ]
    shutil.copytree(folder / "model_0000007", folder / "model_0000007.old")
    save(checkpointer_of(folder), "model_0000008", 8, value=80)  # a crash right before its removal
    assert not (folder / "model_0000007.old").exists()
    shutil.rmtree(folder / "model_0000008")
    (folder / "model_0000007").rename(folder / "model_0000007.old")
    assert resumed(folder) == 70
    save(checkpointer_of(folder), "model_0000008", 8, value=80)
    assert (folder / "model_0000007.old").exists()  # the only one of its iteration


def files_of(name):
    """Paths inside a checkpoint of this test, found by writing one."""
    return [
        "ema/pickled_data",
        "ema/tensor_0/meta",
        "ema/tensor_0/out",
        "manifest",
        "model/pickled_data",
        "model/tensor_0/meta",
        "model/tensor_0/out",
        "model/tensor_1/meta",
        "model/tensor_1/out",
        "progress.json",
    ]


def flip(path):
    """One bit of one byte in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


DAMAGES = {"flipped": flip, "truncated": truncate, "missing": os.unlink}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_the_one_before_used(folder, damage, caplog):
    """In each file there is."""
    present = [
        path.relative_to(folder / "model_0000007").as_posix()
        for path in (folder / "model_0000007").rglob("*")
        if path.is_file()
    ]
    assert sorted(present) == files_of("model_0000007")
    shutil.copytree(folder / "model_0000007", folder / "intact")
    for file in present:
        caplog.clear()
        DAMAGES[damage](folder / "model_0000007" / file)
        assert resumed(folder) == 3, file
        warning = caplog.text
        assert "WARNING" in warning and "model_0000007 is damaged" in warning
        if file != "manifest":
            assert file in warning
        shutil.rmtree(folder / "model_0000007")
        shutil.copytree(folder / "intact", folder / "model_0000007")
    assert resumed(folder) == 7


def test_many_files_are_compared_in_time(tmp_path, monkeypatch):
    lines = [f"00000000 0 {number}\n" for number in range(40_000)]
    (tmp_path / manifest.MANIFEST).write_text("".join(lines))
    names = [line.split()[-1] for line in lines]
    monkeypatch.setattr(manifest, "_files", lambda folder: names)
    monkeypatch.setattr(manifest, "_line", lambda folder, path: f"00000000 0 {path}\n")
    start = time.process_time()
    manifest.verify(tmp_path)
    assert time.process_time() - start < 3


def test_every_byte_of_the_manifest_counts(folder):
    path = folder / "model_0000007" / "manifest"
    intact = path.read_bytes()
    for position in range(len(intact)):
        for bit in (1, 32):  # another digit; a letter's other case
            content = bytearray(intact)
            content[position] ^= bit
            path.write_bytes(content)
            with pytest.raises(CheckpointError):
                manifest.verify(folder / "model_0000007")
    path.write_bytes(intact)
    manifest.verify(folder / "model_0000007")


def test_a_checkpoint_of_half_its_files(folder, caplog):
    shutil.rmtree(folder / "model_0000007" / "ema")
    assert resumed(folder) == 3
    assert "ema" in caplog.text


@pytest.mark.parametrize("content", ["model_0000099", "", "\x00\xff", None])
def test_a_pointer_to_nothing(folder, content, caplog):
    if content is None:
        (folder / "last_checkpoint").unlink()
    else:
        (folder / "last_checkpoint").write_text(content)
    assert resumed(folder) == 7
    assert "WARNING" in caplog.text


def test_the_final_one_damaged(folder, caplog):
    save(checkpointer_of(folder), "model_final", 9, value=9)
    assert resumed(folder) == 9
    truncate(folder / "model_final" / "progress.json")
    assert resumed(folder) == 7
    assert "model_final is damaged" in caplog.text


def test_none_whole(folder):
    for name in ("model_0000003", "model_0000007"):
        truncate(folder / name / "model" / "pickled_data")
    with pytest.raises(CheckpointError, match="no checkpoint is whole, of model_0000007, model_"):
        resumed(folder)


def test_none_at_all(tmp_path):
    assert not checkpointer_of(tmp_path / "none").has_checkpoint()
    with pytest.raises(CheckpointError, match="no checkpoint in this folder"):
        resumed(tmp_path)


def test_leftovers_of_a_crash_are_no_checkpoints(folder):
    shutil.copytree(folder / "model_0000003", folder / "model_0000011.partial")
    assert resumed(folder) == 7
    save(checkpointer_of(folder), "model_0000009", 9)
    assert not (folder / "model_0000011.partial").exists()


def test_folders_of_the_users_stay(folder):
    """Whose names are like those of leftovers."""
    own = {"export.partial", "model_ema.partial", "model_small", "model_small.old"}
    for name in own:
        (folder / name).mkdir()
    checkpointer = checkpointer_of(folder, max_to_keep=1)
    save(checkpointer, "model_0000009", 9)
    assert own < {path.name for path in folder.iterdir()}
    assert not (folder / "model_0000007").exists()
    save(checkpointer, "model_ema", 10)  # the name that a crash has left in part
    assert checkpointer.failure is None and not (folder / "model_ema.partial").exists()


def test_progress_is_plain_json(folder):
    assert json.loads((folder / "model_0000003" / "progress.json").read_text()) == {"iteration": 3}
