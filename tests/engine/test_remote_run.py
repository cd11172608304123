"""A run on shards of a server, killed and restarted: the losses of one on local shards."""

from __future__ import annotations

import json
import shutil
import tarfile

import pytest
import yaml
from shard_server import ShardServer

from libai_ext.data.remote.index import write_beside
from libai_ext.files.user_cache import user_cache

SHARDS, EACH = 6, 40
OPTIONS = (
    "model.depth=1",
    "train.global_batch_size=16",
    "train.train_iter=8",
    "train.warmup_iter=1",
    "train.log_period=1",
    "train.checkpointer.period=2",
    "train.shard_window=2",
    "dataloader.train.num_workers=1",
)


@pytest.fixture
def shards(digits, tmp_path):
    images = sorted(digits.glob("train/*/*.png"))[: SHARDS * EACH]
    (tmp_path / "shards").mkdir()
    for number in range(SHARDS):
        shard = str(tmp_path / f"shards/{number}.tar")
        with tarfile.open(shard, "w") as tar:
            for path in images[number::SHARDS]:
                tar.add(path, path.name)
        write_beside(shard)
    return tmp_path / "shards"


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["iteration"]: line["total_loss"] for line in lines}


@pytest.mark.slow
def test_killed_and_restarted(launch, shards, tmp_path):
    config = "projects/MAE/configs/mae_digits.py"
    local = [f"data.train=[{shards}/{{0..5}}.tar]", f"train.output_dir={tmp_path}/local"]
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    for kernels in user_cache().glob("[0-9a-f]*-*/"):  # to build them takes half a minute
        if kernels.is_dir():
            shutil.copytree(kernels, tmp_path / "cache/libai_ext" / kernels.name)
    launch.train(config, 1, *OPTIONS, *local, env=env)

    size = (shards / "0.tar").stat().st_size
    with ShardServer({path.name: path.read_bytes() for path in shards.iterdir()}) as server:
        server.faults = ["503", "cut", "wrong"]
        place = server.url.replace("http://", "http://me:geheim@")
        out = launch(
            *("bash", "tools/train.sh", "--restarts", 1, "tests/engine/killed_run.py", config, 2),
            *OPTIONS,
            f'data.train=["{place}/{{0..5}}.tar?sig=geheim"]',
            f"data.cache_gib={4.5 * size / 2**30}",
            f"train.output_dir={tmp_path}/remote",
            env=env,
            timeout=150,
        )
        server.shutdown()
    assert server.faults == []
    assert "in windows of 2 of 6 shards (train.shard_window)" in out
    assert out.count("launch: rank 1 ended with SIGKILL") == 1
    first, second = out.split("restart 1 of 1")
    assert "[3/8]" in first
    assert f"Loaded checkpoint {tmp_path}/remote/model_0000001" in second
    expected, found = losses(tmp_path / "local"), losses(tmp_path / "remote")
    assert sorted(found) == sorted(expected) == list(range(1, 9))
    assert found == pytest.approx(expected, rel=1e-5)

    kept = list((tmp_path / "cache/libai_ext/libai_ext_shards").iterdir())
    assert sum(path.stat().st_size for path in kept) <= 4.5 * size
    written = [path for path in (tmp_path / "remote").rglob("*") if path.is_file()]
    assert len(written) > 5
    secret = [path.name for path in written if b"geheim" in path.read_bytes()]
    assert secret == [] and "geheim" not in out
    config = yaml.safe_load((tmp_path / "remote/config.yaml").read_text())
    host = server.url.replace("http://", "")
    assert config["data"]["train"] == [f"http://***@{host}/{{0..5}}.tar?***"]
