"""Every command of the READMEs runs, with data and sizes that a test can afford."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["model.arch=mae_vit_digits", "train.train_iter=2", "train.log_period=1"]
HEADS = ["--encoder-heads", "4", "--decoder-heads", "4"]


def commands(readme):
    """Shell commands in the fenced blocks, as lists of words, continuation lines joined."""
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / readme).read_text(), re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines]


@pytest.fixture(scope="module")
def checkpoint(launch, digits, tmp_path_factory):
    """A folder with ``output/model_final`` of a short run."""
    folder = tmp_path_factory.mktemp("readme")
    options = [f"data.train=[{digits}/train]", f"train.output_dir={folder}/output", *SMALL]
    launch.train("projects/MAE/configs/mae_pretraining.py", 1, *options)
    return folder


def test_front_page(launch, fake_gpus, digits):
    quickstart, tests, peers, general, imagenet, data, photographs, steps = commands("README.md")
    assert quickstart == ["bash", "tools/quickstart.sh"]  # run in tests/tools/test_quickstart.py

    assert tests == ["bash", "tools/test.sh"]
    assert "test_readme.py" in launch(*tests, "--collect-only", "-q", "tests/test_readme.py")

    programs = re.findall(r"\$\(bash (\S+)\)", " ".join(peers))
    assert programs == ["tools/dev/oracle.sh", "tools/dev/browser.sh"]
    assert all((ROOT / program).is_file() for program in programs)

    program = ["bash", "tools/train.sh", "projects/MAE/train_net.py"]
    assert general == [*program, "CONFIG", "N", "[options]", "[key=value", "...]"]

    assert imagenet[:3] == program and imagenet[4:6] == ["8", "data.train=[/data/imagenet/train]"]
    config, options = imagenet[3], [f"data.train=[{digits}/train]", *imagenet[6:], *SMALL]
    gpus = fake_gpus(count=2)
    out = gpus.train(config, 2, "--dry-run", *options, "train.global_batch_size=32")
    assert "effective batch  32 = micro 2 x accumulation 8 x data parallel 2" in out

    out = launch(*data, "--images", "8", "--size", "64")
    assert re.search(r"= \d+ images/s per core", out)

    # They take minutes, and another environment.
    assert "--pairs" in launch(*photographs[:2], "--help")
    assert "--write" in launch(*steps[:2], "--help")


def test_commands_name_the_python_of_the_project():
    """Another one lacks what they need."""
    files = [*ROOT.glob("*.md"), *ROOT.glob("projects/**/*.md"), *ROOT.glob("libai_ext/**/*.md")]
    files += [*ROOT.glob("tools/*.*"), *ROOT.glob("projects/MAE/configs/*.py")]
    plain = re.compile(r"(?<![\w./-])python3? (?:\./)?tools/")
    assert len(files) > 30
    assert [str(file) for file in files if plain.search(file.read_text())] == []


def test_options_that_the_front_page_names(launch, digits, tmp_path):
    text = (ROOT / "README.md").read_text()
    usage = launch.python("projects/MAE/train_net.py", "--help")
    for option in re.findall(r"^\| `(--[a-z-]+)`", text, re.M):
        assert option in usage
    keys = re.findall(r"`((?:data|model|train|graph|optim)\.[a-z_.]+)`", text)
    assert len(set(keys)) > 15
    shown = launch.train("projects/MAE/configs/mae_pretraining.py", 1, "--print-config")
    for key in keys:
        assert re.search(rf"\b{key.rsplit('.', 1)[-1]}:", shown), key


def test_evaluations_while_training(launch, digits):
    command = commands("projects/MAE/README.md")[0]
    assert command[:3] == ["bash", "tools/train.sh", "projects/MAE/train_net.py"]
    config, processes, *options = command[3:]
    data = [f"data.train=[{digits}/train]", f"data.test=[{digits}/test]"]
    out = launch.train(config, int(processes), "--dry-run", *options, *data)
    assert " knn: top1 " in out and " probe: " in out and "nothing was written" in out


def test_conversions(launch, checkpoint):
    to_fb, to_ours, inspect = commands("projects/MAE/README.md")[1:]
    python, script = str(ROOT / ".venv/bin/python"), str(ROOT / "tools/convert.py")
    for command in (to_fb, to_ours, inspect):
        assert command[:2] == [".venv/bin/python", "tools/convert.py"]
        heads = [] if "--inspect" in command else HEADS
        out = launch(python, script, *command[2:], *heads, cwd=checkpoint)
    assert "decoder_blocks.0.attn.qkv.weight" in out
    assert (checkpoint / "weights").is_dir()
