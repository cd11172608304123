"""Mixed precision on a device that does not exist, with overflows where they are told to be."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.slow  # real launches

DIGITS = "projects/MAE/configs/mae_digits.py"
SMALL = (
    "train.amp.enabled=True",
    "train.warmup_iter=0",
    "train.global_batch_size=16",
    "train.log_period=8",
    "model.depth=1",
    "model.decoder_depth=1",
    "dataloader.train.num_workers=1",
    "task.picture_period=0",
)


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def run(gpus, folder, iterations, *options, processes=1, **keywords):
    return gpus.train(
        DIGITS,
        processes,
        f"train.output_dir={folder}",
        f"train.train_iter={iterations}",
        *SMALL,
        *options,
        **keywords,
    )


def scales(folder):
    return [(row["iteration"], row["loss_scale"], row["skipped_steps"]) for row in metrics(folder)]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_scale_that_is_too_high_at_first(fake_gpus, digits, tmp_path, processes):
    """The first 14 steps overflow: the scale goes from 2^16 to 4, the schedule waits."""
    gpus = fake_gpus(count=processes, overflow="first:14")
    out = run(gpus, tmp_path, 24, f"data.train=[{digits}/train]", processes=processes)
    assert scales(tmp_path) == [(8, 2.0**8, 8), (16, 4, 14), (24, 4, 14)]
    assert "loss scale 4, 14 skipped" in out and "error" not in out
    # Ten steps were taken, of a schedule of 24.
    rates = [row["lr"] for row in metrics(tmp_path)]
    assert rates[0] == pytest.approx(5e-4) and rates[0] > rates[1] > rates[2] > 2e-4


def test_now_and_then_an_overflow(fake_gpus, digits, tmp_path):
    """As of a real run: the scale grows until gradients overflow, again and again."""
    overflows = [step % 20 == 19 for step in range(64)]
    run(
        fake_gpus(overflow=overflows),
        tmp_path,
        64,
        f"data.train=[{digits}/train]",
        "train.amp.growth_interval=10",
    )
    # Up after steps 9, 29 and 49, down after 19, 39 and 59.
    expected = {8: 2**16, 16: 2**17, 24: 2**16, 32: 2**17, 40: 2**16, 56: 2**17, 64: 2**16}
    found = {iteration: scale for iteration, scale, _ in scales(tmp_path)}
    assert {iteration: found[iteration] for iteration in expected} == expected
    assert scales(tmp_path)[-1][2] == 3


@pytest.mark.parametrize("processes", [1, 2])
def test_an_overflow_at_the_lowest_scale_is_a_fault(fake_gpus, digits, tmp_path, processes):
    gpus = fake_gpus(count=processes, overflow="always")
    data = f"data.train=[{digits}/train]"
    out = run(gpus, tmp_path, 40, data, processes=processes, status=2)
    assert out.count("error:") == 1 and "Traceback" not in out
    assert "gradients are not finite at 8 of the iterations 16 to 23" in out
    assert "at the lowest loss scale (1)" in out
    assert scales(tmp_path) == [(8, 2.0**8, 8), (16, 1, 16)]
    # Nothing was learnt, nothing is lost.
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000023"


def test_in_float32_any_overflow_is_a_fault(fake_gpus, digits, tmp_path):
    gpus = fake_gpus(overflow="steps:5")
    data = f"data.train=[{digits}/train]"
    out = run(gpus, tmp_path, 16, data, "train.amp.enabled=False", status=2)
    assert "gradients are not finite at 1 of the iterations 3 to 7" in out
    assert "loss scale" not in out
    run(fake_gpus(), tmp_path, 16, data, "train.amp.enabled=False", "--resume")


def test_the_scale_survives_a_resume(fake_gpus, digits, tmp_path):
    """Doubled by the third sound step, halved by an overflow, saved between the two."""
    options = (
        f"data.train=[{digits}/train]",
        "train.amp.growth_interval=3",
        "train.amp.init_scale=1024",
        "train.checkpointer.period=7",
    )
    run(fake_gpus(overflow="steps:4,9,14"), tmp_path, 16, *options)
    whole = [(*row, line["lr"]) for row, line in zip(scales(tmp_path), metrics(tmp_path))]
    assert [row[:3] for row in whole] == [(8, 2048, 1), (16, 1024, 3)]
    (tmp_path / "last_checkpoint").write_text("model_0000006")
    # The device counts the steps of a process.
    run(fake_gpus(overflow="steps:2,7"), tmp_path, 16, *options, "--resume")
    assert [(*row, line["lr"]) for row, line in zip(scales(tmp_path), metrics(tmp_path))] == whole
