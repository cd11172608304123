"""No file runs anything, takes more than 2 seconds or 500 MB, or fails without saying why."""

from __future__ import annotations

import json
import pathlib
import struct
import subprocess
import sys

import hostile_files
import hostile_parts
import hostile_pickles
import pytest

from libai_ext.checkpoint import torch_file
from libai_ext.checkpoint.pickle_writer import global_name, text
from projects.MAE.weights.files import read_weights

MEGABYTES = 500
SECONDS = 2.0


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """name -> (outcome, message, seconds, audit events), and whether the sentinel appeared."""
    folder = tmp_path_factory.mktemp("hostile")
    sentinel = folder.parent / "executed"
    for name, content in hostile_files.all_files(str(sentinel)):
        path = folder / f"{name}.pth"
        assert not path.exists(), f"two hostile files are named {name}"
        path.write_bytes(content)
    runner = pathlib.Path(__file__).with_name("hostile_runner.py")
    command = [sys.executable, str(runner), str(folder), str(MEGABYTES)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    lines = map(json.loads, result.stdout.splitlines())
    return {name: rest for name, *rest in lines}, sentinel


def test_there_are_at_least_200_files(reports):
    assert len(reports[0]) >= 200


def test_nothing_is_executed(reports):
    executed = {name: events for name, (_, _, _, events) in reports[0].items() if events}
    assert executed == {}
    assert not reports[1].exists()


def test_each_ends_in_a_clear_error_that_names_the_file(reports):
    wrong = {
        name: (outcome, message)
        for name, (outcome, message, _, _) in reports[0].items()
        if outcome != "CheckpointError" or name not in message or len(message) > 4000
    }
    assert wrong == {}


def test_none_takes_long(reports):
    slow = {name: seconds for name, (_, _, seconds, _) in reports[0].items() if seconds > SECONDS}
    assert slow == {}


def test_the_same_files_are_read_when_they_are_sound(tmp_path):
    sound = {
        "zip": hostile_parts.zip_file(
            hostile_parts.state_dict(hostile_parts.tensor()), {"0": b"0123456789abcdef"}
        ),
        "legacy": hostile_parts.legacy_file(
            hostile_parts.state_dict(hostile_parts.tensor()),
            ["0"],
            struct.pack("<q", 4) + b"0123456789abcdef",
        ),
    }
    for name, content in sound.items():
        (tmp_path / name).write_bytes(content)
        weights, _ = read_weights(tmp_path / name)
        assert weights["blocks.0.input_layernorm.weight"].tobytes() == b"0123456789abcdef"


def test_sound_weights_are_read_from_beside_a_call(tmp_path):
    sentinel = tmp_path / "executed"
    call = text("args") + global_name("os", "system") + text(f"touch {sentinel}") + b"\x85R"
    model = text("model") + b"}" + text(hostile_parts.NAME) + hostile_parts.tensor() + b"s"
    path = tmp_path / "state.pth"
    path.write_bytes(hostile_parts.zip_file(b"}(" + model + call + b"u.", {"0": bytes(16)}))
    tree = torch_file.load(path)
    assert tree["model"][hostile_parts.NAME].shape == (2, 2)
    placeholder = tree["args"]
    assert (placeholder.module, placeholder.name) == ("os", "system")
    assert placeholder.args == (f"touch {sentinel}",)
    assert not sentinel.exists()


def test_the_watch_sees_what_python_would_run(tmp_path):
    """The corpus is dangerous: Python's own unpickler runs it, and the watch notices."""
    sentinel = tmp_path / "executed"
    content = dict(hostile_pickles.calls(str(sentinel)))["call_raw"]
    script = (
        "import pickle, sys; sys.path.insert(0, sys.argv[1]); import hostile_runner\n"
        "sys.addaudithook(hostile_runner.watch)\n"
        "pickle.loads(sys.stdin.buffer.read()); print(hostile_runner.EVENTS)"
    )
    command = [sys.executable, "-c", script, str(pathlib.Path(__file__).parent)]
    result = subprocess.run(command, input=content, capture_output=True, check=True)
    assert b"os.system" in result.stdout
    assert sentinel.exists()
