"""Reads that fail for a while."""

from __future__ import annotations

import errno
import logging
import os
import re
import tarfile
import threading
import time

import pytest
from image_files import encode, pixels

from libai_ext.data import retry
from libai_ext.data.image_folder import ImageFolder, check_folder
from libai_ext.data.retry import is_temporary, is_unavailable, read_with_retry
from libai_ext.data.sources import open_source
from libai_ext.data.tar_shards import TarShards
from libai_ext.engine import cli as entry
from libai_ext.errors import DataError, DataUnavailable


@pytest.fixture(autouse=True)
def _quick(monkeypatch, tmp_path):
    monkeypatch.setattr(retry, "RETRY_SECONDS", 0.3)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    for name in "ab":
        (tmp_path / "mount/data" / name).mkdir(parents=True)
        (tmp_path / f"mount/data/{name}/0.png").write_bytes(encode(pixels()))
    return tmp_path / "mount/data"


def failing(times, number):
    """A read that fails so often; and how often it was called."""
    calls = []

    def read():
        calls.append(1)
        if len(calls) <= times:
            raise OSError(number, os.strerror(number), "/away/file")
        return "read"

    return read, calls


@pytest.mark.parametrize("name", ["EIO", "ESTALE", "ETIMEDOUT", "ECONNRESET", "ENOTCONN", "EBUSY"])
def test_an_error_that_passes(name, caplog):
    read, calls = failing(2, getattr(errno, name))
    with caplog.at_level(logging.WARNING):
        assert read_with_retry(read, "/away/file", is_temporary) == "read"
    assert len(calls) == 3
    first, last = caplog.messages
    reason = re.escape(os.strerror(getattr(errno, name)))
    assert re.fullmatch(f"cannot read /away/file: {reason}; retrying for 0.3 s", first)
    assert re.fullmatch(r"/away/file can be read again, after 0\.[2-9] s", last)


@pytest.mark.parametrize("name", ["EACCES", "EPERM", "ENOENT", "EISDIR", "ENAMETOOLONG"])
def test_what_a_user_has_to_mend_is_not_waited_for(name):
    read, calls = failing(1, getattr(errno, name))
    with pytest.raises(OSError):
        read_with_retry(read, "/away/file", is_temporary)
    assert len(calls) == 1


def test_the_limit(capsys):
    read, _ = failing(1000, errno.EIO)
    with pytest.raises(DataUnavailable) as caught:
        read_with_retry(read, "/away/file", is_temporary)
    assert entry._report(caught.value) == 74
    expected = "error: cannot read /away/file: Input/output error, for more than 0.3 s\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("what", ["mount", "mount/data", "mount/data/a", "emptied"])
def test_a_folder_that_is_away_and_comes_back(folder, tmp_path, what):
    source = open_source(str(folder))
    place = tmp_path / ("mount/data/a" if what == "emptied" else what)
    place.rename(tmp_path / "elsewhere")
    if what == "emptied":  # nothing is mounted there
        place.mkdir()
    threading.Timer(0.15, (tmp_path / "elsewhere").rename, [place]).start()
    image, label = source[0]
    assert (image.size, label) == (pixels().shape[1::-1], 0)


def test_a_file_that_is_gone_is_the_users(folder):
    (folder / "a/1.png").write_bytes(encode(pixels()))
    source = ImageFolder([str(folder)])
    (folder / "a/0.png").unlink()
    start = time.monotonic()
    with pytest.raises(DataError, match="cannot open .*a/0.png: No such file") as caught:
        source[0]
    assert type(caught.value) is DataError and time.monotonic() - start < 0.2


def test_a_stale_shard_is_opened_again(folder, tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        tar.add(folder / "a/0.png", "0.png")
    source = TarShards(str(tmp_path / "s.tar"))
    real, used = os.pread, []

    def pread(descriptor, *arguments):
        used.append(os.fstat(descriptor).st_ino)
        if len(used) == 1:
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(descriptor, *arguments)

    monkeypatch.setattr(os, "pread", pread)
    opened = []
    real_open = os.open
    monkeypatch.setattr(os, "open", lambda *a, **k: opened.append(a[0]) or real_open(*a, **k))
    source[0]
    assert len(used) == 2 and opened == [str(tmp_path / "s.tar")] * 2


def test_a_root_is_waited_for_after_a_restart_only(folder, tmp_path, monkeypatch):
    (tmp_path / "mount").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="does not exist") as caught:
        open_source(str(folder))
    assert type(caught.value) is DataError
    monkeypatch.setenv("LIBAI_EXT_ATTEMPT", "1")
    threading.Timer(0.15, (tmp_path / "elsewhere").rename, [tmp_path / "mount"]).start()
    assert len(open_source(str(folder))) == 2
    with pytest.raises(DataUnavailable, match="none does not exist .*, for more than 0.3 s"):
        open_source(str(tmp_path / "none"))


def test_the_error_of_a_root_is_named(folder, monkeypatch):
    def stat(path, **options):
        raise OSError(errno.EIO, "Input/output error", path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", stat)
        with pytest.raises(DataError, match="data folder .*: Input/output error") as caught:
            check_folder(str(folder))
    assert is_temporary(caught.value) and is_unavailable(caught.value.__cause__)
