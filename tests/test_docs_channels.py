"""docs/channels.md: its code on a few arrays of four channels, from training to pictures."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import event_pictures
import numpy as np
import pytest
from data.made_tables import table as table_of
from data.made_tables import write_parquet
from PIL import Image

from libai_ext.checkpoint import oneflow_folder
from libai_ext.config.lazy_config import instantiate
from libai_ext.data.channels import DIVISORS, ChannelImage
from libai_ext.errors import ConfigError
from projects.MAE.run import resolve

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/channels.md").read_text()
STATISTICS, CONFIG, ENCODER = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
OPTIONS = ["model.img_size=[32,32]", "model.embed_dim=32", "model.num_heads=2", "model.depth=1"]
OPTIONS += ["model.decoder_embed_dim=16", "model.decoder_num_heads=2", "model.decoder_depth=1"]
OPTIONS += ["train.global_batch_size=4", "train.train_iter=3", "train.warmup_iter=1"]
OPTIONS += ["task.picture_period=3", "dataloader.train.num_workers=1"]


def fields(number: int) -> np.ndarray:
    """Levels of 16 bits [40, 36, 4]; the last channel is brighter."""
    rng = np.random.default_rng(number)
    return np.uint16(rng.integers(0, 30_000, (40, 36, 4)) + np.array([0, 0, 0, 20_000]))


@pytest.fixture(scope="module")
def folder(launch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("channels")
    for number in range(12):
        path = folder / "fields" / ("train" if number < 9 else "test") / f"{number % 9}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, fields(number))
    (folder / "fields.py").write_text(CONFIG)
    more = [Path(folder / f"fields/train/{number}.npy").read_bytes() for number in range(3)]
    table = write_parquet(folder / "more.parquet", table_of(more), row_group_size=2)
    data = [f"data.train=['{folder}/fields/train','{table}']", f"data.test=[{folder}/fields/test]"]
    data += [f"train.output_dir={folder}/output/fields", "train.evaluation.enabled=True"]
    launch.train(folder / "fields.py", 1, *OPTIONS, *data)
    return folder


def test_the_statistics(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    exec(STATISTICS, {})
    values = np.stack([fields(number) for number in range(9)]) / 65535
    mean, std = (np.round(f(axis=(0, 1, 2)), 3).tolist() for f in (values.mean, values.std))
    assert capsys.readouterr().out == f"mean {mean} std {std}\n"


def test_the_run(folder):
    run = folder / "output/fields"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(lines[-1]["total_loss"]) and np.isfinite(lines[-1]["eval_loss"])
    weights = oneflow_folder.load(run / "model_final")
    assert weights["patch_embed.proj.weight"].shape == (32, 4, 8, 8)
    record = json.loads((run / "model_final/record.json").read_text())
    assert {key: record["data"][key] for key in ("mode", "divisors", "picture_channels")} == {
        "mode": 4,
        "divisors": DIVISORS,
        "picture_channels": [2, 1, 0],
    }
    assert re.search(r"samples +12\n", (run / "log.txt").read_text())
    assert list(event_pictures.pictures_of(run)) == [3]


def test_the_encoder_brings_images_in_as_the_run(folder, monkeypatch):
    monkeypatch.chdir(folder)
    names: dict = {}
    exec(ENCODER, names)
    np.testing.assert_array_equal(names["features"], names["same"])
    cfg = resolve("fields.py", OPTIONS)
    transform = instantiate(cfg.dataloader.test.dataset.transform)
    expected = transform(ChannelImage(fields(9), 4), np.random.default_rng(0))
    for given in ("fields/test/0.npy", fields(9)):
        np.testing.assert_array_equal(names["encoder"].preprocess(given), expected)
    # By hand: the mean of a channel is hardly changed by a resize.
    by_hand = (fields(9)[..., 3].mean() / 65535 - 0.4) / 0.2
    assert expected[3].mean() == pytest.approx(by_hand, abs=0.05)
    # A float32 array is an image, unless it has the shape of the model's input.
    stored = np.float32(fields(9)) / 65535
    np.testing.assert_allclose(names["encoder"].preprocess(stored), expected, atol=1e-4)
    found = names["encoder"].features([stored], pool="mean")
    np.testing.assert_allclose(found, names["features"], atol=1e-4)


def test_pictures(launch, folder):
    (line,) = re.findall(r"^```bash\n(.*?)\n```", PAGE, re.M | re.S)
    python, program, *arguments = shlex.split(line)
    assert launch.python(ROOT / program, *arguments, cwd=folder).endswith("fields.png\n")
    assert Image.open(folder / "fields.png").mode == "RGB"


def test_the_mode_on_the_command_line():
    options = ["model.in_chans=2", "data.mean=[0,0]", "data.std=[1,1]"]
    cfg = resolve("mae_pretraining", [*OPTIONS, *options, "data.mode=2"])
    assert cfg.data.mode == cfg.dataloader.train.dataset.source.mode == 2


@pytest.mark.parametrize(
    "option, message",
    [
        ("data.mode=5", "model.in_chans 4 does not go with data.mode 5"),
        ("data.mode=0", "data.mode must be one of .* or a whole number of at least 1"),
        ("data.mean=[0,0,0]", "data.mean has 3 values for model.in_chans 4 channels"),
        ("task.picture_channels=[4]", r"task.picture_channels \[4\] must be one or three of .* 3"),
        ("task.picture_channels=[0,1]", r"picture_channels \[0, 1\] must be one or three of"),
    ],
)
def test_keys_that_do_not_go_together(folder, option, message):
    with pytest.raises(ConfigError, match=message):
        resolve(os.fspath(folder / "fields.py"), [*OPTIONS, option])
