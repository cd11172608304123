"""The package of docs/extend.md, from outside of the project, trains on one and two processes."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import event_pictures
import numpy as np
import pytest

from libai_ext.checkpoint import oneflow_folder

ROOT = Path(__file__).resolve().parents[1]
RUNS = "tests/multiprocess/many_runs.py"
PAGE = (ROOT / "docs/extend.md").read_text()
OPTIONS = ["model.depth=1", "train.global_batch_size=8", "train.train_iter=8"]
OPTIONS += ["train.warmup_iter=1", "train.log_period=1", "train.evaluation.enabled=True"]
OPTIONS += ["dataloader.train.num_workers=1", "dataloader.test.num_workers=0"]


@pytest.fixture(scope="module")
def runs(launch, tmp_path_factory):
    """Runs in folders by the number of processes; that of one is evaluated from its config.yaml."""
    folder = tmp_path_factory.mktemp("outside")
    files = dict(re.findall(r"^`(mine/\w+\.py)`\n\n```python\n(.*?)^```", PAGE, re.M | re.S))
    assert list(files) == [
        f"mine/{x}.py" for x in ("target", "masking", "source", "task", "evaluator", "config")
    ]
    (folder / "mine").mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    env = {"PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    options = ["--config-file", f"{folder}/mine/config.py", *OPTIONS]
    again = ["--config-file", f"{folder}/1/config.yaml", "--allow-targets", "mine", "--eval-only"]
    for processes, then in ((1, [again]), (2, [])):
        path = folder / f"commands-{processes}.json"
        path.write_text(json.dumps([[*options, f"train.output_dir={folder}/{processes}"], *then]))
        command = ["-m", "libai_ext.launch", "--nproc-per-node", processes, RUNS, path]
        launch.python(*command, env=env)
    return folder


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_same_curve(runs):
    one, two = (metrics(runs / name) for name in "12")
    curves = [[line["total_loss"] for line in lines] for lines in (one, two)]
    assert len(curves[0]) == 8 and curves[0] == pytest.approx(curves[1], rel=1e-5)
    assert [line["images_seen"] for line in two] == [8 * step for step in range(1, 9)]


@pytest.mark.slow
def test_each_part_was_in_use(runs):
    weights = oneflow_folder.load(runs / "2/model_final")
    assert weights["decoder_pred.weight"].shape == (64, 1)  # one grey value a patch
    record = json.loads((runs / "2/model_final/record.json").read_text())
    assert record["model"]["target"] == "mine.target.MeanColour"
    log = (runs / "1/log.txt").read_text()
    assert "cannot read image shade 3: it is here to be replaced; sample 4 replaces sample 3" in log
    assert list(event_pictures.pictures_of(runs / "1")) == [4, 8]
    one, two = (metrics(runs / name) for name in "12")
    last = one[-1]["eval_loss"]
    assert np.isfinite(last)
    token = [line["token/deviation"] for line in one[1::2]]
    assert len(set(token)) == 4 and [line.get("token/deviation") for line in one[::2]] == [None] * 4
    assert [line["token/deviation"] for line in two[1::2]] == pytest.approx(token, rel=1e-5)
    # Once while training, once from the config as text.
    assert log.count(f"evaluation on 64 samples: loss {last:.6g}") == 2


def test_the_page_names_what_is_there():
    for dotted in re.findall(r"^\| [^|]+ \| `([\w.]+)` \|", PAGE, re.M):
        module, _, name = dotted.rpartition(".")
        assert getattr(__import__(module, fromlist=[name]), name).__doc__
