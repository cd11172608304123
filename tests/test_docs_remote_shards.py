"""The code of docs/remote_shards.md, with a server on this machine."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shard_server import ShardServer

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/remote_shards.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(12):
        path = tmp_path / "photos" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(256, size=(8, 8, 3), dtype=np.uint8)).save(path)
    return tmp_path


def test_pack_index_and_read(launch, photos):
    pack, read = blocks("python")
    index, train = blocks("bash")
    assert "data.cache_gib=100" in train
    env = {"XDG_CACHE_HOME": str(photos / "cache")}
    (photos / "pack.py").write_text(pack)
    launch.python("pack.py", cwd=photos)
    program, pattern = index.split()[1:]
    out = launch.python(ROOT / program, pattern.strip("'"), cwd=photos)
    assert "4 indices: shards/train-000000.tar.index ...\n" in out
    files = {path.name: path.read_bytes() for path in (photos / "shards").iterdir()}
    assert len(files) == 8
    with ShardServer(files) as server:
        code = read.replace("https://data.example.org", server.url)
        (photos / "read.py").write_text(code)
        out = launch.python("read.py", cwd=photos, env=env)
        server.shutdown()
    name = f"{server.url}/train-000000.tar:"
    assert re.search(rf"^12 \['0', '1'\] {name}(cat|dog)_\d+\.png$", out, re.M)
    assert "train-000000.tar" in server.fetched() and "train-000001.tar" not in server.fetched()


def test_an_index_that_cannot_be_written(launch, tmp_path):
    out = launch.python(ROOT / "tools/index_shards.py", tmp_path / "none.tar", status=2)
    assert out.startswith(f"error: shard {tmp_path}/none.tar is no plain (uncompressed) tar file")
