"""Options and errors of the training program, through the launcher."""

from __future__ import annotations

import json

import pytest
import yaml

from libai_ext.config.lazy_config import dump, load

DIGITS = "projects/MAE/configs/mae_digits.py"


@pytest.fixture
def options(digits, tmp_path):
    """Overrides that point the digits config at the fixture's data and a small model."""
    return [
        f"data.train=[{digits}/train]",
        f"data.test=[{digits}/test]",
        f"train.output_dir={tmp_path}/run",
        "train.train_micro_batch_size=16",
        "model.depth=1",
    ]


def test_print_config(launch, options, tmp_path):
    out = launch.train(DIGITS, 1, "--print-config", *options, "optim.lr=0.5")
    shown = yaml.safe_load(out)
    assert (shown["optim"]["lr"], shown["train"]["global_batch_size"]) == (0.5, 16)
    assert shown["model"]["embed_dim"] == 64
    assert shown["dataloader"]["train"]["dataset"]["fields"][0]["num_patches"] == 64
    assert not (tmp_path / "run").exists()


def test_dry_run(launch, options, tmp_path):
    out = launch.train(DIGITS, 1, "--dry-run", *options)
    for text in (
        "samples          1,198",
        "iterations       4,792 (64 epochs), warm-up 375",
        "effective batch  16 = micro 16 x accumulation 1 x data parallel 1",
        "learning rate    0.0005",
        "input images: [1, 32, 32] float32",
        "input noise: [64] float32",
        "one step: ",
        "; nothing was written",
    ):
        assert text in out
    assert not (tmp_path / "run").exists()


def test_fast_dev_run_then_eval_only_then_resume(launch, options, tmp_path):
    out = launch.train(DIGITS, 1, "--fast-dev-run", *options)
    assert "[4/4]" in out and "evaluation on 64 of 599 samples: loss" in out
    run = tmp_path / "run/fast_dev_run"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["fast_dev_run"]
    assert (run / "last_checkpoint").read_text() == "model_final"
    assert json.loads((run / "model_final/progress.json").read_text())["iteration"] == 3
    kept = load(str(run / "config.yaml"))
    assert (kept.train.train_iter, kept.train.output_dir) == (4, str(run))
    # What was given, nothing derived.
    assert (kept.model.depth, kept.model.embed_dim) == (1, None)
    assert (kept.optim.lr, kept.train.dist.data_parallel_size) == (None, None)
    events = list((run / "tensorboard").iterdir())
    assert len(events) == 1 and events[0].stat().st_size > 200

    options.append(f"train.output_dir={run}")
    out = launch.train(DIGITS, 1, "--eval-only", *options)
    first = out.split("evaluation on 599 samples: loss ")[1].split()[0]
    again = [f"{run}/config.yaml", 3, "--eval-only", "train.test_micro_batch_size=7"]
    out = launch.train(*again, "train.global_batch_size=64")  # 3 ranks could not train on it
    again = out.split("evaluation on 599 samples: loss ")[1].split()[0]
    assert float(again) == pytest.approx(float(first), rel=1e-5)

    # Evaluating has left the run's own config as it was.
    assert load(str(run / "config.yaml")).train.test_micro_batch_size == 32

    out = launch.train(DIGITS, 1, "--resume", *options, "train.train_iter=4", "train.warmup_iter=1")
    assert "nothing to do: 4 of 4 iterations are done" in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["train.train_epochs=3"], "unknown config key 'train.train_epochs'"),
        (["model.arch=mae_vit_tiny"], "model.arch 'mae_vit_tiny' is unknown"),
        (["model.img_size=[30,32]"], "30x32 (height x width) is not divisible by patch_size 4"),
        (["data.train=[/nowhere]"], "data folder /nowhere does not exist"),
        (["train.dist.tensor_parallel_size=3"], "= 3 processes, but 1 are running"),
        (["--resume"], "run holds no run to resume"),
        (["train.epoch_remainder=keep"], "must be one of ('carry', 'drop'), not 'keep'"),
        (["train.base_lr=null"], "set train.base_lr"),
        (["model.mask_ratio=0"], "mask_ratio 0 leaves 64 of 64 patches visible"),
    ],
)
def test_mistakes_end_with_one_message(launch, options, arguments, message):
    out = launch.train(DIGITS, 1, *options, *arguments, status=2)
    assert message in out
    assert "Traceback" not in out
    assert out.count("error:") == 1


def test_unreadable_image_is_named(launch, options, digits, tmp_path):
    folder = tmp_path / "data/a"
    folder.mkdir(parents=True)
    (folder / "broken.png").write_bytes(b"no picture")
    out = launch.train(DIGITS, 2, *options, f"data.train=[{tmp_path}/data]", status=2)
    assert f"cannot read image {folder}/broken.png" in out
    assert "Traceback" not in out


def test_train_sh_without_arguments_says_how(launch):
    out = launch("bash", "tools/train.sh", status=2)
    assert out.startswith("Launch a training program on N processes")


def test_a_config_of_a_stranger_runs_nothing(launch, options, tmp_path):
    path = tmp_path / "config.yaml"
    cfg = load(DIGITS)
    path.write_text(
        dump(cfg).replace(
            "task: ", f'task: "${{oc.create:{{_target_:os.mkdir,path:{tmp_path}/ran}}}}" #'
        )
    )
    out = launch.train(str(path), 1, "--print-config", *options, status=2)
    assert f"error: config file {path}: task: of interpolations only ${{key}} is read" in out
    assert "Traceback" not in out
    assert not (tmp_path / "ran").exists()
