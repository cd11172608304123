"""Checkpoints on a disk that refuses: full, read-only, failing."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest
from checkpoints import checkpointer_of, resumed, save, two_checkpoints

from libai_ext.checkpoint import manifest
from libai_ext.checkpoint.errors import CheckpointError


@pytest.fixture
def folder(tmp_path):
    """Checkpoints after iterations 3 and 7; their weights are 3 and 7."""
    return two_checkpoints(tmp_path)


def assert_refused(checkpointer, caplog, reason):
    """A save fails, the caller goes on, the older checkpoints stay; the next save works."""
    caplog.clear()
    checkpointer.save("model_0000009", 9, best=9)
    checkpointer.join()
    assert "best" not in checkpointer.plain
    assert reason in checkpointer.failure
    assert [r.levelno for r in caplog.records] == [logging.ERROR]
    assert "model_0000009 could not be written" in caplog.text and reason in caplog.text
    with pytest.raises(CheckpointError, match="could not be written"):
        checkpointer.finish()


def test_disk_full(small_disk, caplog):
    folder = small_disk.folder
    checkpointer = checkpointer_of(folder)
    save(checkpointer, "model_0000003", 3, value=3)
    small_disk.fill()
    assert_refused(checkpointer, caplog, "No space left on device")
    assert sorted(path.name for path in folder.iterdir()) == [
        "filler",
        "last_checkpoint",
        "model_0000003",
    ]
    assert resumed(folder) == 3
    small_disk.free()
    save(checkpointer, "model_0000009", 9, value=9, best=9)
    assert checkpointer.failure is None and resumed(folder) == 9
    assert checkpointer.plain == {"best": 9}
    assert checkpointer.progress(folder / "model_0000009") == {"best": 9, "iteration": 9}


def test_read_only_disk(small_disk, caplog):
    folder = small_disk.folder
    checkpointer = checkpointer_of(folder)
    save(checkpointer, "model_0000003", 3, value=3)
    small_disk.allow("ro")
    assert_refused(checkpointer, caplog, "Read-only file system")
    assert resumed(folder) == 3
    small_disk.allow("rw")
    save(checkpointer, "model_0000009", 9, value=9)
    assert resumed(folder) == 9


def test_a_file_where_the_folder_should_be(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert_refused(checkpointer_of(tmp_path / "file"), caplog, "File exists")


@pytest.mark.parametrize("number", [1, 8, 16, 17])
def test_input_output_error(folder, caplog, monkeypatch, number):
    """At the n-th fsync: of a file, of a folder, of the name."""
    real = os.fsync
    calls: list[int] = []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) == number:
            raise OSError(5, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert_refused(checkpointer_of(folder), caplog, "Input/output error")
    monkeypatch.undo()
    assert resumed(folder) == 7
    assert not list(folder.glob("*.partial"))


def test_unreadable_file(folder, caplog, monkeypatch):
    """EIO while the checksums are compared."""
    real = manifest.open_regular

    def failing(path):
        if str(path).endswith("model_0000007/model/tensor_0/out"):
            raise OSError(5, "Input/output error")
        return real(path)

    monkeypatch.setattr(manifest, "open_regular", failing)
    latest = checkpointer_of(folder).get_checkpoint_file()
    assert latest == str(folder / "model_0000003")
    assert "tensor_0/out: Input/output error" in caplog.text


def test_files_and_folders_follow_the_umask_without_setting_it(tmp_path):
    """To ask for it sets it, also for the files that another thread makes at that moment."""
    program = (
        "import os\n"
        "from libai_ext.files.atomic import atomic_file, atomic_folder\n"
        "os.umask = None\n"
        "with atomic_file('a') as name: open(name, 'w').close()\n"
        "with atomic_folder('b'): pass\n"
        "print(*(oct(os.stat(name).st_mode & 0o777) for name in 'ab'))\n"
    )
    command = ["sh", "-c", 'umask 027; exec "$0" -c "$1"', sys.executable, program]
    env = dict(os.environ, PYTHONPATH=os.getcwd())
    out = subprocess.run(command, cwd=tmp_path, env=env, check=True, stdout=subprocess.PIPE)
    assert out.stdout.split() == [b"0o640", b"0o750"]
