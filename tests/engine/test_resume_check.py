"""A resumed run is compared with its checkpoint key by key."""

from __future__ import annotations

import json

import pytest

from libai_ext.config import lazy_config
from libai_ext.engine.resume_check import check, settings
from libai_ext.errors import ConfigError
from projects.MAE.run import resolve

CONFIG = "projects/MAE/configs/mae_digits.py"


def settings_of(*opts, samples=100, file=CONFIG):
    return settings(resolve(file, ["train.train_iter=10", *opts]), range(samples))


@pytest.mark.parametrize(
    "opts",
    [
        ["train.num_accumulation_steps=2", "train.global_batch_size=64"],
        ["data.train=[/elsewhere]", "data.test=[/elsewhere]"],
        ["train.log_period=1", "train.checkpointer.period=7", "train.output_dir=/elsewhere"],
        ["dataloader.train.num_workers=3", "data.max_bad_share=0.5"],
    ],
)
def test_layout_places_and_reports_are_free(opts):
    check(settings_of(), settings_of(*opts), "path")


@pytest.mark.parametrize(
    ("opts", "line"),
    [
        (["model.depth=7"], "model.depth: 4 in the checkpoint, 7 in the config"),
        (["model.mask_ratio=0.5"], "model.mask_ratio: 0.75 in the checkpoint, 0.5 in the config"),
        (["train.seed=1"], "train.seed: 0 in the checkpoint, 1 in the config"),
        (["train.train_iter=20"], "train.train_iter: 10 in the checkpoint, 20 in the config"),
        (["train.global_batch_size=8"], "train.global_batch_size: 64 in the checkpoint, 8 in"),
        (["optim.lr=1.0"], "optim.lr: 0.002 in the checkpoint, 1.0 in the config"),
        (["optim.betas=[0.9,0.99]"], "optim.betas: [0.9, 0.95] in the checkpoint, [0.9, 0.99] in"),
        (["train.epoch_remainder=drop"], "train.epoch_remainder: carry in the checkpoint, drop"),
        (["graph.enabled=True"], "graph.enabled: False in the checkpoint, True in the config"),
        (["data.std=[0.4]"], "transforms.1.std: [0.5] in the checkpoint, [0.4] in the config"),
        (["train.scheduler.min_lr=0.1"], "train.scheduler.min_lr: 0.0 in the checkpoint, 0.1"),
    ],
)
def test_a_contradiction_is_named_with_both_values(opts, line):
    with pytest.raises(ConfigError) as error:
        check(settings_of(), settings_of(*opts), "output/model_0000007")
    assert line in str(error.value)
    assert "train.load_weight=output/model_0000007" in str(error.value)


def test_another_data_set():
    with pytest.raises(ConfigError, match="training samples: 100 in the checkpoint, 99 in the"):
        check(settings_of(), settings_of(samples=99), "path")


def test_all_differences_are_named_at_once():
    with pytest.raises(ConfigError) as error:
        check(settings_of(), settings_of("train.seed=1", "model.depth=7"), "path")
    assert len([line for line in str(error.value).splitlines() if line.startswith("  ")]) == 2


def test_weights_alone_need_the_model_alone():
    check(settings_of(), settings_of("train.seed=1"), "path", prefix="model.")
    with pytest.raises(ConfigError, match="model.depth"):
        check(settings_of(), settings_of("model.depth=7"), "path", prefix="model.")


def test_the_dump_of_a_config_agrees_with_it(tmp_path):
    """It holds names where the Python file has classes."""
    cfg = resolve(CONFIG, ["train.train_iter=10"])
    dumped = tmp_path / "config.yaml"
    dumped.write_text(lazy_config.dump(cfg))
    check(settings(cfg, range(100)), settings_of(file=str(dumped)), "path")


@pytest.mark.parametrize("graph", [True, False])
def test_a_mode_that_is_unset_is_that_of_the_checkpoint(tmp_path, graph):
    """Of the latest one that can be read; a mode that is set stays."""
    out, notes = [f"train.output_dir={tmp_path}"], []
    for name, progress in (
        ("model_0000001", {"iteration": 1, "settings": {"graph.enabled": not graph}}),
        ("model_0000003", {"iteration": 3, "settings": {"graph.enabled": graph}}),
        ("model_0000005", {"settings": {}}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "progress.json").write_text(json.dumps(progress))
    assert resolve(CONFIG, out, go_on=True, notes=notes).graph.enabled is graph
    assert notes[-1].endswith("mode, since graph.enabled is unset: that of the checkpoint")
    assert resolve(CONFIG, out).graph.enabled is False
    given = resolve(CONFIG, [*out, f"graph.enabled={not graph}"], go_on=True)
    assert given.graph.enabled is not graph


@pytest.mark.parametrize("mode", [None, 1, "yes", [True]])
def test_a_checkpoint_without_a_mode(tmp_path, mode):
    folder = tmp_path / "model_final"
    folder.mkdir()
    progress = {"iteration": 1, "settings": {"graph.enabled": mode}}
    (folder / "progress.json").write_text(json.dumps(progress))
    cfg = resolve(CONFIG, [f"train.output_dir={tmp_path}"], go_on=True)
    assert cfg.graph.enabled is False
