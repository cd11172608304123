"""The loss curve of a run does not depend on the number of processes, nor on interruptions.

Twenty iterations; tests/multiprocess/test_layouts.py has every layout, accumulation and resumption
under another layout, for five.
"""

from __future__ import annotations

import json
import shutil

import pytest

CONFIG = "projects/MAE/configs/mae_pretraining.py"


def curve(folder):
    """Loss by iteration, as metrics.jsonl has it."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["iteration"]: line["total_loss"] for line in lines}


@pytest.fixture(scope="module")
def train(launch, digits, tmp_path_factory):
    """Runs 20 iterations with augmentation and masking; gives the output folder."""

    def run(processes, mode, *options, folder=None, env=None):
        folder = folder or tmp_path_factory.mktemp("run")
        launch.train(
            CONFIG,
            processes,
            f"data.train=[{digits}/train]",
            f"train.output_dir={folder}",
            f"graph.enabled={mode == 'graph'}",
            "model.arch=mae_vit_digits",
            "model.depth=2",
            "train.global_batch_size=16",
            "train.train_iter=20",
            "train.warmup_iter=4",
            "train.base_lr=0.01",
            "train.log_period=1",
            "train.checkpointer.period=8",
            *options,
            env=env,
        )
        return folder

    return run


@pytest.fixture(scope="module")
def one_process(train):
    return {mode: train(1, mode) for mode in ("graph", "eager")}


@pytest.mark.parametrize("mode", ["graph", "eager"])
def test_one_process_learns(one_process, mode):
    losses = curve(one_process[mode])
    assert list(losses) == list(range(1, 21))
    assert losses[20] < 0.8 * losses[1]


@pytest.mark.slow
@pytest.mark.parametrize("processes, mode", [(2, "graph"), (2, "eager"), (4, "eager")])
def test_same_curve_on_more_processes(one_process, train, processes, mode):
    folder = train(processes, mode)
    assert curve(folder) == pytest.approx(curve(one_process[mode]), rel=1e-5)


def test_graph_and_eager_agree(one_process):
    assert curve(one_process["graph"]) == pytest.approx(curve(one_process["eager"]), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["graph", "eager"])
def test_same_curve_without_native_kernels(one_process, train, mode):
    folder = train(1, mode, env={"LIBAI_EXT_NATIVE": "0"})
    assert curve(folder) == pytest.approx(curve(one_process[mode]), rel=1e-4)
    assert "off (LIBAI_EXT_NATIVE=0)" in (folder / "log.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["graph", "eager"])
def test_resume_continues_the_curve(one_process, train, tmp_path, mode):
    """Back to the checkpoint after 8 iterations, with what was logged since still in the file."""
    folder = tmp_path / "resumed"
    shutil.copytree(one_process[mode], folder)
    shutil.rmtree(folder / "model_final")
    (folder / "last_checkpoint").write_text("model_0000007")
    expected = curve(one_process[mode])
    train(1, mode, "--resume", folder=folder)
    assert curve(folder) == expected
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 20
