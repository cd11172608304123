from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest
from omegaconf import DictConfig

from libai_ext.config import lazy_config
from libai_ext.engine.output_dir import check_output_dir, prepare_output_dir, write_record
from libai_ext.engine.run_folder import read_metrics
from libai_ext.errors import ConfigError, DataError
from projects.MAE.rules import find_recipe


@pytest.fixture
def cfg(tmp_path):
    return DictConfig(dict(train=dict(output_dir=str(tmp_path / "run"), seed=1)))


@pytest.fixture
def run(cfg, tmp_path):
    """The directory of an earlier run, with a file of the user's."""
    folder = tmp_path / "run"
    (folder / "model_0000009").mkdir(parents=True)
    (folder / "model_0000009/progress.json").write_text("{}")
    (folder / "last_checkpoint").write_text("model_0000009")
    (folder / "metrics.jsonl").write_text('{"iteration": 10}\n')
    (folder / "log.txt.rank1").write_text("a line\n")
    (folder / "notes.md").write_text("mine\n")
    return folder


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "environment.json"
    }


def start(cfg, **how):
    """What a run does first."""
    with prepare_output_dir(cfg, **how):
        write_record(cfg.train.output_dir, cfg)


def prepare(cfg, **how):
    with prepare_output_dir(cfg, **how):
        pass


def test_a_new_directory_gets_the_config(cfg, tmp_path):
    start(cfg)
    assert (tmp_path / "run/environment.json").is_file()
    assert files(tmp_path / "run") == {
        "config.yaml": f"train: {{output_dir: {tmp_path}/run, seed: 1}}\n"
    }


def test_what_lost_nothing_may_be_repeated(cfg, tmp_path):
    """A run that failed before its first result, and a directory with other things in it."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.md").write_text("mine")
    (tmp_path / "run/metrics.jsonl").touch()
    prepare(cfg)
    prepare(cfg)
    assert (tmp_path / "run/notes.md").read_text() == "mine"


@pytest.mark.parametrize("left", ["model_0000009", "metrics.jsonl"])
def test_a_second_run_is_refused(cfg, run, left):
    for name in {"model_0000009", "metrics.jsonl"} - {left}:
        (run / name).rename(run.parent / name)
    before = files(run)
    with pytest.raises(ConfigError, match="holds an earlier run: continue it by --resume"):
        prepare(cfg)
    assert files(run) == before


def test_resume_keeps_everything(cfg, run):
    before = files(run)
    prepare(cfg, resume=True)
    assert files(run) == before
    write_record(str(run), cfg)
    after = files(run)
    assert after.pop("config.yaml")
    assert after == before


@pytest.mark.parametrize("name", ["config.yaml", "environment.json"])
def test_a_record_is_replaced_whole_or_not_at_all(cfg, run, monkeypatch, name):
    """As on a full disk: the text cannot be brought to the disk."""
    (run / name).write_text("the earlier one")
    replace = os.replace

    def full(source, target):
        if str(target).endswith(name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ConfigError, match="run cannot be written: No space left on device"):
        write_record(str(run), cfg)
    assert (run / name).read_text() == "the earlier one"


def test_there_must_be_a_run_to_resume(cfg, tmp_path):
    with pytest.raises(ConfigError, match="--resume: train.output_dir .*/run holds no run"):
        prepare(cfg, resume=True)
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/log.txt").touch()  # one that ended before its first checkpoint
    prepare(cfg, resume=True)


def test_start_over_moves_the_earlier_run_aside(cfg, run):
    (run / "model_0000019.partial").mkdir()  # of a crash
    (run / "model_0000019.partial/a").touch()
    (run / "model_card.md").write_text("mine too\n")
    before = files(run)
    start(cfg, start_over=True)
    start(cfg, start_over=True)
    after = files(run)
    for name in ("notes.md", "model_card.md"):
        assert after.pop(name) == before.pop(name)
    assert after.pop("config.yaml") == after.pop("before_2/config.yaml")
    assert after == {f"before_1/{name}": text for name, text in before.items()}


def test_a_restart_continues_the_run_that_its_job_has_begun(cfg, run, monkeypatch):
    """An attempt that crashed earlier has left the run that was there before: it is not this
    job's."""
    before = files(run)
    monkeypatch.setenv("LIBAI_EXT_ATTEMPT", "1")
    monkeypatch.setenv("LIBAI_EXT_GOES_ON", "0")
    with pytest.raises(ConfigError, match="run holds an earlier run"):
        prepare(cfg)
    monkeypatch.setenv("LIBAI_EXT_GOES_ON", "1")
    prepare(cfg)
    prepare(cfg, start_over=True)
    assert files(run) == before
    monkeypatch.setenv("LIBAI_EXT_GOES_ON", "0")
    prepare(cfg, start_over=True)
    assert (run / "before_1/model_0000009").is_dir()


def test_a_trial_touches_nothing_of_the_run(cfg, run):
    before = files(run)
    (run / "fast_dev_run/model_final").mkdir(parents=True)
    start(cfg, dev_run=True)
    assert cfg.train.output_dir == f"{run}/fast_dev_run"
    after = files(run)
    assert after.pop("fast_dev_run/config.yaml")
    assert after == before
    assert not (run / "fast_dev_run/model_final").exists()


def test_a_directory_that_cannot_be_written(cfg, tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(ConfigError, match="cannot be written: File exists"):
        prepare(cfg)


@pytest.mark.parametrize("needed", ["run", "run/model_0000009", "run/model_0000009/model", "link"])
@pytest.mark.parametrize("ask", [prepare, check_output_dir])
def test_weights_that_starting_over_would_move(cfg, run, needed, ask):
    (run.parent / "link").symlink_to(run / "model_0000009")
    before = files(run.parent)
    with pytest.raises(ConfigError, match="run.*, which --start-over moves aside: copy it to ano"):
        ask(cfg, start_over=True, needed=["mine.pth", str(run.parent / needed)])
    after = files(run.parent)
    after.pop("run/run.lock", None)
    assert after == before


@pytest.mark.parametrize("needed", ["run", "run/fast_dev_run/model_final"])
def test_weights_that_a_trial_deletes(cfg, run, needed):
    (run / "fast_dev_run/model_final").mkdir(parents=True)
    kept = needed == "run"
    if kept:
        prepare(cfg, dev_run=True, needed=[str(run.parent / needed)])
    else:
        with pytest.raises(ConfigError, match="model_final, which --fast-dev-run deletes: copy"):
            prepare(cfg, dev_run=True, needed=[str(run.parent / needed)])
    assert (run / "fast_dev_run/model_final").exists() is not kept


def test_other_weights_are_no_obstacle(cfg, run):
    prepare(cfg, start_over=True, needed=["mine.pth", str(run / "notes.md"), str(run) + "2"])
    assert (run / "before_1/model_0000009").is_dir()
    prepare(cfg, start_over=True, needed=[str(run / "before_1/model_0000009")])


@pytest.fixture
def disk():
    """A folder with a run and a neighbour's folder that cannot be entered."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        path.chmod(0o777)
        (path / "run").mkdir()
        (path / "run/metrics.jsonl").write_text("{}")
        (path / "private").mkdir(mode=0)
        root = os.getuid() == 0
        if root:  # who may enter any folder
            os.setresuid(65534, 65534, 0)
        yield path
        if root:
            os.setresuid(0, 0, 0)


def resumed(folder):
    prepare(DictConfig(dict(train=dict(output_dir=str(folder)))), resume=True)


def test_a_neighbours_folder_is_no_run_to_suggest(disk):
    with pytest.raises(ConfigError, match="rnu holds no run to resume: did you mean .*/run'?"):
        resumed(disk / "rnu")


@pytest.mark.parametrize(
    "ask, error, message",
    [
        (resumed, ConfigError, "train.output_dir .*private cannot be written: Permission denied"),
        (
            lambda folder: check_output_dir(
                DictConfig(dict(train=dict(output_dir=str(folder)))), resume=True
            ),
            ConfigError,
            "train.output_dir .*private cannot be written: Permission denied",
        ),
        (
            lambda folder: lazy_config.load(f"{folder}/c.py"),
            ConfigError,
            "config file .*private/c.py cannot be read: Permission denied",
        ),
        (
            lambda folder: find_recipe(f"{folder}/c.py"),
            ConfigError,
            "config file .*private/c.py cannot be read: Permission denied",
        ),
        (read_metrics, DataError, "private is not the output directory of a run"),
    ],
)
def test_a_folder_that_cannot_be_entered(disk, ask, error, message):
    with pytest.raises(error, match=message):
        ask(disk / "private")
