"""Weights & Biases offline and MLflow in a folder get what metrics.jsonl gets."""

from __future__ import annotations

import ast
import contextlib
import inspect
import json
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from libai.utils.events import EventStorage
from mlflow import MlflowClient
from PIL import Image
from wandb.proto.wandb_internal_pb2 import Record as Stored
from wandb.sdk.internal.datastore import DataStore

from libai_ext.config import lazy_config
from libai_ext.engine.loggers import background, mlflow_tracking, weights_and_biases
from libai_ext.engine.loggers.background import BackgroundWriter
from libai_ext.engine.loggers.logger import Run, build_loggers
from libai_ext.engine.loggers.mlflow_tracking import MLflow
from libai_ext.engine.loggers.weights_and_biases import WeightsAndBiases
from libai_ext.errors import ConfigError
from projects.MAE.run import resolve

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "projects/MAE/configs/mae_digits.py"
CONFIG = {"model": {"depth": 2, "target": None}, "data": {"train": ["a"]}, "rules": {}}
SUMMARY = {"device": "cpu", "pipeline stages": "layers 0-3"}
GREY = np.arange(12, dtype=np.uint8).reshape(1, 3, 4)
COLOUR = np.arange(36, dtype=np.uint8).reshape(3, 3, 4)


@pytest.fixture(autouse=True)
def _no_service(tmp_path, monkeypatch):
    for name in ("HOME", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(background, "_CLOSE_SECONDS", 300)  # on a busy machine they start slowly


def session(logger, folder, steps, start=0, last=9):
    """A run, or a part of one, from ``start``: two metrics a step, pictures at step 3."""
    logger.check("train.loggers.one")
    writer = BackgroundWriter("one", logger, Run(str(folder), CONFIG, SUMMARY), start, last)
    with EventStorage() as storage:
        for step in steps:
            storage.iter, storage.samples = step, 8 * step
            if step == 3:
                storage.put_image("grey", GREY)
                storage.put_image("colour", COLOUR)
            storage.put_scalars(total_loss=1 / step, **{"knn/top1": float("nan")})
            writer.write()
            storage.clear_images()
    writer.close()


def wandb_records(folder, count):
    """The records in the files of the ``count`` runs in ``folder``, in the order of their start.

    The service may write the last ones, up to that of the end, after ``finish`` has returned.
    """
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = []
        for path in sorted(Path(folder).glob("wandb/offline-run-*/*.wandb")):
            store = DataStore()
            with contextlib.suppress(Exception):  # the file is empty yet
                store.open_for_scan(str(path))
                found.append([Stored.FromString(data) for data in iter(store.scan_data, None)])
            store.close()
        if [bool(one) and one[-1].HasField("exit") for one in found] == [True] * count:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{count} runs have not ended: {found}")


def values(items):
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def rows(records):
    return [
        values(one.history.item) for one in records if one.WhichOneof("record_type") == "history"
    ]


def test_weights_and_biases(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    session(WeightsAndBiases(project="p", name="n"), tmp_path, [1, 2, 3, 4])
    wandb_records(tmp_path, 1)
    session(WeightsAndBiases(), tmp_path, range(3, 10), start=2)
    first, second = wandb_records(tmp_path, 2)
    assert [row["_step"] for row in rows(first)] == [1, 2, 3, 4]
    assert [row["_step"] for row in rows(second)] == [5, 6, 7, 8, 9]
    for row in rows(first) + rows(second):
        step = row["_step"]
        assert row["samples"] == 8 * step and row["total_loss"] == 1 / step
        assert np.isnan(row["knn/top1"])
    runs = [one.run for one in first + second if one.HasField("run")]
    id = json.loads((tmp_path / "loggers/one.json").read_text())["id"]
    assert re.fullmatch("[0-9a-f]{8}", id) and {run.run_id for run in runs} == {id}
    assert runs[0].project == "p" and {run.display_name for run in runs} == {"n", tmp_path.name}
    config = values(runs[0].config.update)
    assert {name: config[name] for name in CONFIG} == CONFIG and config["run"] == SUMMARY
    ends = [one.exit for one in first + second if one.HasField("exit")]
    assert [end.exit_code for end in ends] == [1, 0]
    (shown,) = (row for row in rows(first) if row["_step"] == 3)
    for name, picture in (("grey", GREY[0]), ("colour", COLOUR.transpose(1, 2, 0))):
        (path,) = tmp_path.glob(f"wandb/*/files/{shown[f'{name}/path']}")
        assert (np.asarray(Image.open(path)) == picture).all()


@pytest.mark.parametrize("left", [7, 900, 3])
def test_a_killed_run_offline(tmp_path, left):
    """W&B had written ``left`` bytes, so that the resumed run writes what is missing."""
    lines = [{"iteration": step, "samples": 8 * step, "total_loss": 1 / step} for step in (1, 2, 3)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    session(WeightsAndBiases(), tmp_path, [1, 2, 3, 4])
    wandb_records(tmp_path, 1)
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    with path.open("r+b") as file:
        file.truncate(left)
    session(WeightsAndBiases(), tmp_path, [4, 5], start=3)
    path.unlink()
    (second,) = wandb_records(tmp_path, 1)
    assert [row["_step"] for row in rows(second)] == [1, 2, 3, 4, 5]
    assert [row["total_loss"] for row in rows(second)] == [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]


def test_mlflow(tmp_path):
    store = str(tmp_path / "store")
    session(MLflow(tracking_uri=store, experiment="e", name="n"), tmp_path, [1, 2, 3, 4])
    client = MlflowClient(tracking_uri=store)
    (run,) = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    id = run.info.run_id
    assert json.loads((tmp_path / "loggers/one.json").read_text()) == {"id": id}
    assert (run.info.status, run.info.run_name) == ("KILLED", "n")
    session(MLflow(tracking_uri=store, experiment="e"), tmp_path, range(3, 10), start=2)
    run = client.get_run(id)
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(id, "total_loss")
    assert [(m.step, m.value) for m in history] == [(step, 1 / step) for step in range(1, 10)]
    history = client.get_metric_history(id, "samples")
    assert [(m.step, m.value) for m in history] == [(step, 8 * step) for step in range(1, 10)]
    assert len(client.get_metric_history(id, "knn/top1")) == 9
    assert run.data.params == {
        "model.depth": "2",
        "model.target": "None",
        "data.train": "['a']",
        "rules": "{}",
    }
    assert {f"run.{name}": text for name, text in SUMMARY.items()}.items() <= run.data.tags.items()
    for name, picture in (("grey", GREY[0]), ("colour", COLOUR.transpose(1, 2, 0))):
        (path,) = Path(store).rglob(f"{name}+step+3+*[0-9a-f].png")
        assert (np.asarray(Image.open(path)) == picture).all()


def test_names_that_mlflow_does_not_have(tmp_path):
    store = str(tmp_path / "store")
    logger = MLflow(tracking_uri=store)
    logger.check("k")
    id, _ = logger.open(Run(str(tmp_path), {"a@b": "x" * 9000}, {"c(d": "e"}), None)
    run = MlflowClient(tracking_uri=store).get_run(id)
    assert run.data.params == {"a_b": "x" * 500} and run.data.tags["run.c_d"] == "e"


def test_a_server_that_is_gone(tmp_path, caplog, port):
    session(MLflow(tracking_uri=f"http://127.0.0.1:{port}"), tmp_path, [1, 2])
    assert "one lacks 2 records of this run (API request to http://127.0.0.1" in caplog.text
    assert not (tmp_path / "loggers").exists()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_missing(name, monkeypatch):
    cfg = resolve(RECIPE, [f"train.loggers.{name}.enabled=True"])
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError) as caught:
        build_loggers(cfg)
    assert f"train.loggers.{name} needs a package that is not installed" in str(caught.value)
    assert f"uv pip install '.[{name}]'" in str(caught.value)
    assert f"\n{name} = [" in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("module", [mlflow_tracking, weights_and_biases])
def test_only_a_chosen_package_is_imported(module):
    for node in ast.parse(inspect.getsource(module)).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert not any(name.startswith(("mlflow", "wandb")) for name in names)
    assert build_loggers(resolve(RECIPE, [])) == {}


def test_mlflow_without_databases(tmp_path):
    with pytest.raises(ConfigError, match=r"k.tracking_uri sqlite:.*a database needs the package"):
        MLflow(tracking_uri=f"sqlite:///{tmp_path}/m.db").check("k")


@pytest.mark.parametrize(
    "options, message",
    [
        (["train.loggers.wandb.enabled=maybe"], "wandb.enabled must be true or false"),
        (["train.loggers.wandb.projekt=x"], "projekt'.*did you mean 'train.loggers.wandb.project'"),
        (["train.loggers.mlflow.tracking_uri=[a]"], "tracking_uri must be a text"),
        (["train.loggers.wandb=x"], "is a group of keys"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        resolve(RECIPE, options)


@pytest.mark.parametrize(
    "own, message",
    [
        ("{wandb: {_target_: os.system}}", "wandb._target_ 'os.system' is not among"),
        ("{../x: {_target_: CLASS}}", "a key must be a name"),
        ("{wandb: {_target_: CLASS, enabled: 3}}", "wandb.enabled must be true or false"),
        ("{wandb: {enabled: true}}", "wandb must be a group of keys with a _target_"),
        ("7", "must be a group of keys, not 7"),
    ],
)
def test_a_file_may_be_hostile(tmp_path, own, message):
    text = lazy_config.dump(resolve(RECIPE, []))
    start = text.index("  loggers:")
    end = re.compile(r"^  \w", re.M).search(text, start + 3).start()
    own = own.replace("CLASS", f"{WeightsAndBiases.__module__}.WeightsAndBiases")
    path = tmp_path / "config.yaml"
    path.write_text(f"{text[:start]}  loggers: {own}\n{text[end:]}")
    with pytest.raises(ConfigError, match=re.escape(message)):
        resolve(str(path), [])


def test_the_page_has_a_logger(tmp_path, monkeypatch):
    page = (ROOT / "docs/loggers.md").read_text()
    files = dict(re.findall(r"^`(mine/\w+\.py)`\n\n```python\n(.*?)^```", page, re.M | re.S))
    assert list(files) == ["mine/logger.py", "mine/config.py"]
    (tmp_path / "mine").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text.replace('folder="."', f"folder={str(tmp_path)!r}"))
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        cfg = resolve(str(tmp_path / "mine/config.py"), [])
        for steps, start in ((range(1, 5), 0), (range(3, 8), 2)):
            (logger,) = build_loggers(cfg).values()
            session(logger, tmp_path, steps, start)
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
            del sys.modules[name]
    table = [line.split(",") for line in (tmp_path / f"{tmp_path.name}.csv").read_text().split()]
    assert [(int(step), float(loss)) for step, loss in table] == [(s, 1 / s) for s in range(1, 8)]
