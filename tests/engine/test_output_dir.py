from __future__ import annotations

import pytest
from omegaconf import DictConfig

from libai_ext.engine.output_dir import prepare_output_dir, write_record
from libai_ext.errors import ConfigError


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


def test_there_must_be_a_run_to_resume(cfg, tmp_path):
    with pytest.raises(ConfigError, match="--resume: train.output_dir .*/run holds no run"):
        prepare(cfg, resume=True)
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/log.txt").touch()  # one that ended before its first checkpoint
    prepare(cfg, resume=True)


def test_start_over_moves_the_earlier_run_aside(cfg, run):
    before = files(run)
    start(cfg, start_over=True)
    start(cfg, start_over=True)
    after = files(run)
    assert after.pop("notes.md") == before.pop("notes.md")
    assert after.pop("config.yaml") == after.pop("before_2/config.yaml")
    assert after == {f"before_1/{name}": text for name, text in before.items()}


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
