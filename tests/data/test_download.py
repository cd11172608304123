"""Downloads from a server on this machine: whole, broken off, wrong, by several processes."""

from __future__ import annotations

import hashlib
import multiprocessing
from dataclasses import replace

import pytest
from made_sets import write_cifar10, write_tar
from served import Server

from libai_ext.data import download
from libai_ext.data.cifar import Cifar10
from libai_ext.errors import DataError

BODY = bytes(range(256)) * 4000
MD5 = hashlib.md5(BODY).hexdigest()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(download, "_PAUSE", 0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def server():
    server = Server(BODY)
    yield server
    server.shutdown()
    server.server_close()


def test_whole(server, tmp_path):
    path = tmp_path / "set.tar.gz"
    download.fetch(server.url, path, MD5)
    assert path.read_bytes() == BODY
    download.fetch(server.url, path, MD5)
    assert server.ranges == [None]
    assert [p.name for p in tmp_path.iterdir()] == ["set.tar.gz"]


def test_a_broken_connection_is_resumed(server, tmp_path):
    server.cuts = [300_000, 200_000]
    download.fetch(server.url, tmp_path / "x", MD5)
    assert (tmp_path / "x").read_bytes() == BODY
    assert server.ranges == [None, "bytes=300000-", "bytes=500000-"]


def test_a_server_without_parts_is_asked_from_the_start(server, tmp_path):
    server.cuts, server.parts = [300_000], False
    download.fetch(server.url, tmp_path / "x", MD5)
    assert (tmp_path / "x").read_bytes() == BODY
    assert server.ranges == [None, "bytes=300000-"]


def test_the_next_run_resumes(server, tmp_path):
    server.cuts = [1000, 0, 0, 0, 0]
    with pytest.raises(DataError, match="1,000 bytes are kept in .*x.part and the next run"):
        download.fetch(server.url, tmp_path / "x", MD5)
    assert not (tmp_path / "x").exists()
    assert (tmp_path / "x.part").read_bytes() == BODY[:1000]
    download.fetch(server.url, tmp_path / "x", MD5)
    assert (tmp_path / "x").read_bytes() == BODY
    assert server.ranges == [None] + ["bytes=1000-"] * 5


def test_a_complete_part_is_only_checked(server, tmp_path):
    (tmp_path / "x.part").write_bytes(BODY)
    download.fetch(server.url, tmp_path / "x", MD5)
    assert (tmp_path / "x").read_bytes() == BODY


@pytest.mark.parametrize(
    "part", [b"of something else" * 10, BODY + b"more"], ids=["shorter", "longer"]
)
def test_a_part_of_another_file_is_thrown_away(server, tmp_path, part):
    (tmp_path / "x.part").write_bytes(part)
    download.fetch(server.url, tmp_path / "x", MD5)
    assert (tmp_path / "x").read_bytes() == BODY
    assert server.ranges == [f"bytes={len(part)}-", None]


def test_a_wrong_checksum_is_refused(server, tmp_path):
    with pytest.raises(DataError, match=f"wrong checksum .MD5 {MD5}, expected 0+.: .* removed"):
        download.fetch(server.url, tmp_path / "x", "0" * 32)
    assert list(tmp_path.iterdir()) == []


def test_the_server_refuses_or_is_not_there(server, tmp_path):
    server.status = 404
    with pytest.raises(DataError, match="HTTP status 404"):
        download.fetch(server.url, tmp_path / "x", MD5)
    with pytest.raises(DataError, match="cannot download .*refused"):
        download.fetch("http://127.0.0.1:9/x", tmp_path / "x", MD5)


@pytest.fixture
def cifar_archive(server, tmp_path, monkeypatch):
    """The server holds CIFAR-10 as its publisher packs it; the reader looks there."""
    folder = write_cifar10(tmp_path / "made")
    members = [(f"{folder.name}/{p.name}", p.read_bytes()) for p in sorted(folder.iterdir())]
    members.insert(2, (f"{folder.name}/readme.html", b"not needed"))
    members.insert(3, (f"../{folder.name}/escape", b"not wanted"))
    path = write_tar(tmp_path / "made/x.tar.gz", members, mode="w:gz")
    with open(path, "rb") as file:
        server.body = file.read()
    md5 = hashlib.md5(server.body).hexdigest()
    monkeypatch.setattr(Cifar10, "archive", replace(Cifar10.archive, url=server.url, md5=md5))
    return folder


def test_cifar10_from_the_server(server, cifar_archive, tmp_path):
    server.cuts = [5000]
    root = tmp_path / "new/data"
    source = Cifar10(str(root), "train", download=True)
    assert (len(source), server.ranges) == (20, [None, "bytes=5000-"])
    for path in cifar_archive.iterdir():
        assert (root / cifar_archive.name / path.name).read_bytes() == path.read_bytes()
    left = sorted(p.name for p in root.rglob("*") if p.parent == root)
    assert left == [".cifar-10-batches-py.lock", "cifar-10-batches-py"]
    assert not (root / cifar_archive.name / "readme.html").exists()
    Cifar10(str(root), "test", download=True)
    assert len(server.ranges) == 2


def test_a_damaged_archive_leaves_nothing(server, cifar_archive, tmp_path, monkeypatch):
    cut = server.body[: len(server.body) // 2]
    server.body = cut
    wrong = replace(Cifar10.archive, md5=hashlib.md5(cut).hexdigest())
    monkeypatch.setattr(Cifar10, "archive", wrong)
    with pytest.raises(DataError, match="set.tar.gz cannot be unpacked"):
        Cifar10(str(tmp_path / "new"), "train", download=True)
    assert not (tmp_path / "new/cifar-10-batches-py").exists()


def test_one_process_of_several_downloads(server, cifar_archive, tmp_path):
    server.delay = 0.3
    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def read():
        queue.put(len(Cifar10(str(tmp_path / "new"), "train", download=True)))

    processes = [context.Process(target=read) for _ in range(3)]
    for process in processes:
        process.start()
    assert [queue.get(timeout=20) for _ in processes] == [20, 20, 20]
    for process in processes:
        process.join(20)
    assert server.ranges == [None]
