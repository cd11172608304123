"""Fixtures of the tests of data sources."""

from __future__ import annotations

import resource
import signal
import time
from pathlib import Path

import pytest
from image_files import encode, pixels
from made_sets import write_tar
from remote_sets import EACH, NAMES
from shard_server import ShardServer

from libai_ext.data import retry
from libai_ext.data.remote import server
from libai_ext.data.remote.index import write_beside

MEGABYTES, SECONDS = 600, 3


@pytest.fixture
def bounded(tmp_path, monkeypatch):
    """Each test has little time and memory: what waits for ever or fills it fails."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (MEGABYTES << 20), before[1]))
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(10)
    start = time.process_time()
    yield
    signal.alarm(0)
    resource.setrlimit(resource.RLIMIT_AS, before)
    assert time.process_time() - start < SECONDS


@pytest.fixture
def quick_retries(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(retry, "RETRY_SECONDS", 1.0)
    monkeypatch.setattr(server, "PIECE", 4096)
    monkeypatch.setattr(server, "SMALLEST", 512)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Shards of images with classes, and their indices."""
    folder = tmp_path_factory.mktemp("shards")
    for number, name in enumerate(NAMES):
        rows = []
        for image in range(EACH * number, EACH * number + EACH):
            rows += [(f"{image}.cls", b"%d" % (image % 3)), (f"{image}.png", encode(pixels(image)))]
        write_beside(write_tar(folder / name, rows))
    return folder


@pytest.fixture
def served(shards):
    with ShardServer({path.name: path.read_bytes() for path in shards.iterdir()}) as server:
        yield server
        server.shutdown()


@pytest.fixture
def without_index(served):
    for name in NAMES:
        del served.files[f"{name}.index"]
    return served
