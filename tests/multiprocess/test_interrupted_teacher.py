"""A run with a teacher and two loggers that is interrupted and resumed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from made_runs import DECODER, SIZES, autoencoder, make_run, randomise
from mlflow import MlflowClient
from wandb.proto.wandb_internal_pb2 import Record as Stored
from wandb.sdk.internal.datastore import DataStore

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ("-m", "libai_ext.launch", "--nproc-per-node", "2")
STEPS = 60
TEACHER = dict(img_size=(32, 32), in_chans=1, depth=3)


def command(folder, digits, name):
    return [
        *("--config-file", "mae_distill", f"model.target.weights={folder}/teacher"),
        *("model.arch=mae_vit_digits", "model.depth=1", "model.in_chans=1", "data.mode=L"),
        *("data.mean=[0.5]", "data.std=[0.5]", f"data.train=[{digits}/train]"),
        *("train.global_batch_size=8", f"train.train_iter={STEPS}", "train.warmup_iter=1"),
        *("train.log_period=1", "dataloader.train.num_workers=1", "graph.enabled=False"),
        f"train.output_dir={folder}/{name}",
    ]


@pytest.fixture(scope="module")
def runs(launch, digits, tmp_path_factory):
    """A folder with the run ``whole`` and the run ``term``, which SIGTERM ended at first."""
    folder = tmp_path_factory.mktemp("runs")
    grey = dict(mode="L", mean=[0.5], std=[0.5])
    sizes = {**SIZES, **DECODER, **TEACHER}
    make_run(folder / "teacher", randomise(autoencoder(**TEACHER)), sizes, grey)
    term = [
        *command(folder, digits, "term"),
        *("train.loggers.wandb.enabled=True", "train.loggers.mlflow.enabled=True"),
        f"train.loggers.mlflow.tracking_uri={folder}/mlflow",
    ]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
            patch.setenv(name, str(folder / "home"))
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        job = subprocess.Popen(
            [sys.executable, *LAUNCH, "projects/MAE/train_net.py", *term],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        text = ""
        for line in job.stdout:
            text += line
            if f"[ 3/{STEPS}]" in line:
                job.send_signal(signal.SIGTERM)
        assert job.wait(60) == 75, text
        (checkpoint,) = (folder / "term").glob("model_0*")
        (folder / "stopped").write_text(str(int(checkpoint.name[6:]) + 1))
        path = folder / "commands.json"
        path.write_text(json.dumps([command(folder, digits, "whole"), [*term, "--resume"]]))
        launch.python(*LAUNCH, "tests/multiprocess/many_runs.py", path)
    return folder


def weights(run):
    folder = run / "model_final/model"
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("out")}


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["iteration"]: line["total_loss"] for line in lines}


def test_the_weights_are_those_of_a_whole_run(runs):
    assert 3 <= int((runs / "stopped").read_text()) < STEPS
    assert losses(runs / "term") == losses(runs / "whole")
    assert weights(runs / "term") == weights(runs / "whole")


def test_the_teacher_is_not_in_the_checkpoint(runs):
    """Neither its three layers nor its width, unlike the student's one layer."""
    names = {str(path.parent) for path in weights(runs / "term")}
    assert names
    files = list((runs / "term/model_final").rglob("*"))
    described = b"".join(
        path.read_bytes() for path in files if path.is_file() and path.name != "out"
    )
    assert b"blocks.0." in described
    assert b"blocks.1." not in described and b"target." not in described.replace(
        b"model.target.", b""
    )


def test_each_logger_has_each_step_once(runs, monkeypatch):
    """Only rank 0 writes: there is one run of each service, in two parts."""
    expected = losses(runs / "whole")
    sent = []
    paths = sorted((runs / "term/wandb").glob("offline-run-*/*.wandb"))
    assert len(paths) == 2 and len({path.name for path in paths}) == 1
    for path in paths:
        store = DataStore()
        store.open_for_scan(str(path))
        for data in iter(store.scan_data, None):
            items = Stored.FromString(data).history.item
            row = {item.key or item.nested_key[0]: item.value_json for item in items}
            if row:
                sent.append((int(row["_step"]), float(row["total_loss"])))
        store.close()
    assert sent == list(expected.items())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = MlflowClient(tracking_uri=str(runs / "mlflow"))
    (run,) = client.search_runs(["0"])
    history = client.get_metric_history(run.info.run_id, "total_loss")
    assert [(one.step, one.value) for one in history] == sent
    assert run.info.status == "FINISHED"
