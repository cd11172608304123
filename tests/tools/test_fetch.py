"""``tools/fetch.py`` against a server on this machine."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
from made_runs import autoencoder, randomise, weights_of
from served import Server

from projects.MAE.weights.files import read_weights, write_fb
from projects.MAE.weights.packing import Heads

NAME = "mae_visualize_vit_large"  # no MD5 is published


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "mae.pth"
    write_fb(weights_of(randomise(autoencoder())), str(path), Heads(4, 2))
    return path


@pytest.fixture
def server(weights, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server(weights.read_bytes())
    yield server
    server.shutdown()
    server.server_close()


def fetch(server, *arguments, status=0):
    base = server.url.rsplit("/", 2)[0]
    command = [sys.executable, "tools/fetch.py", *map(str, arguments), "--base", base]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == status, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_the_list():
    out = subprocess.run([sys.executable, "tools/fetch.py"], capture_output=True, text=True)
    lines = out.stdout.splitlines()
    assert len(lines) == 8
    assert lines[0].split() == ["mae_pretrain_vit_base", "md5", "8cad7c", "ViT-B", "encoder"]


def test_a_file_is_fetched_described_and_used(server, weights, tmp_path):
    server.cuts = [1000]  # then it continues
    out = fetch(server, NAME, "--folder", tmp_path / "weights")
    path = tmp_path / "weights" / f"{NAME}.pth"
    assert path.read_bytes() == weights.read_bytes()
    assert server.ranges == [None, "bytes=1000-"]
    assert f"no MD5 is published for {NAME}: the download is not checked" in out
    assert f"{path}: pretraining, 16 x 16 pixels, patch 4, width 48, depth 2" in out
    assert read_weights(path, Heads(4, 2))[1].contents == "pretraining"
    assert fetch(server, NAME, "--folder", tmp_path / "weights")  # it is there
    assert len(server.ranges) == 2


def test_other_bytes_are_removed(server, weights, tmp_path):
    found = hashlib.md5(weights.read_bytes()).hexdigest()
    out = fetch(server, "mae_pretrain_vit_base", "--folder", tmp_path, status=2)
    assert f"wrong checksum (MD5 {found}, expected 8cad7c): the file was removed" in out
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_published(server, tmp_path):
    out = fetch(server, "mae_pretrain_vit_tiny", status=2)
    assert "invalid choice: 'mae_pretrain_vit_tiny'" in out
    server.status = 404
    out = fetch(server, NAME, "--folder", tmp_path, status=2)
    assert f"/visualize/{NAME}.pth: HTTP status 404" in out
