"""Tar shards on a server: the same samples as local ones, whatever the server does."""

from __future__ import annotations

import contextlib
import io
import logging
import threading
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from remote_sets import EACH, NAMES, PATTERN, SHARDS, check_same, kept, kept_of, opened

from libai_ext.data.dataset import KeyedDataset
from libai_ext.data.loader import Loader
from libai_ext.data.remote import index, server
from libai_ext.data.sampler import GlobalOrder, TrainSampler
from libai_ext.data.sharded import shard_windows
from libai_ext.data.sources import open_images, open_source
from libai_ext.data.tar_shards import parse_index
from libai_ext.engine import cli as entry
from libai_ext.errors import ConfigError, DataError, DataUnavailable

pytestmark = pytest.mark.usefixtures("quick_retries")


def test_the_samples_are_those_of_local_shards(served, shards, tmp_path):
    source = opened(served)
    assert served.fetched() == [f"{name}.index" for name in NAMES]
    check_same(source, open_source(str(shards / PATTERN)))
    assert source.name(7) == f"{served.url}/shard-1.tar:7.png"
    assert [path.stat().st_size for path in kept(tmp_path)] == [20480] * 5
    served.asked.clear()
    assert len(opened(served)) == len(open_images([f"{served.url}/{PATTERN}"])) == 30
    assert {method for method, _, _ in served.asked} == {"HEAD"}


def test_without_indices_each_shard_is_fetched_once(without_index, shards, caplog):
    with caplog.at_level(logging.INFO):
        source = opened(without_index)
    check_same(source, open_source(str(shards / PATTERN)))
    whole = [row for row in without_index.asked if row[0] == "GET" and row[1].endswith(".tar")]
    assert len(whole) == SHARDS * 5  # pieces of 4 KiB
    without_index.asked.clear()
    opened(without_index)
    assert without_index.fetched() == []


def to_array(image, generator):
    return np.float32(np.asarray(image).ravel()[:8] + generator.integers(9))


def sampler_of(source, window, ranks, rank, start):
    return TrainSampler(
        GlobalOrder(30, 8, 3, shards=shard_windows(source, window)), rank, ranks, start
    )


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_batches_are_those_of_local_shards(served, shards, tmp_path, ranks):
    """With two data workers a rank and a cache of three shards; every second rank starts in the
    middle, as after an interruption."""
    local, limit = open_source(str(shards / PATTERN)), 3 * 20480
    source, most, done = opened(served, cache_gib=limit / 2**30), [], threading.Event()
    data, expected = (KeyedDataset(each, to_array, labels=True) for each in (source, local))

    def files():
        return [*kept(tmp_path), *kept(tmp_path, "*.part")]

    def watch():
        while not done.is_set():
            there = files()
            sizes = []
            for path in there:
                with contextlib.suppress(FileNotFoundError):
                    sizes.append(path.stat().st_size)
            if there == files():  # else one may have gone before another was looked at
                most.append(sum(sizes))
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for rank in range(ranks):
            start = 2 * (rank % 2)
            loaded = iter(Loader(data, sampler_of(source, 2, ranks, rank, start), 2))
            for keys in islice(iter(sampler_of(local, 2, ranks, rank, start)), 4):
                batch, wanted = next(loaded), expected.collate([expected[key] for key in keys])
                for name, values in wanted.items():
                    np.testing.assert_array_equal(batch.get(name).tensor.numpy(), values)
    finally:
        done.set()
        watcher.join()
    assert len(most) > 20 and 20480 <= max(most) <= limit


def test_the_next_window_is_fetched_ahead(served, tmp_path):
    source = opened(served)
    order = GlobalOrder(30, 2, 3, shards=shard_windows(source, 2))
    loaded = iter(Loader(KeyedDataset(source, to_array), TrainSampler(order, 0, 1), 1))
    next(loaded)
    now, following = order.shards_at(0)
    end = time.monotonic() + 10
    while len(kept(tmp_path)) < 4 and time.monotonic() < end:
        time.sleep(0.02)
    shards = source.source.found
    expected = sorted(source.source.cache.path(shards[k]) for k in (*now, *following))
    assert kept(tmp_path) == expected


@pytest.mark.parametrize(
    "faults",
    [["503", "500"], ["cut"] * 3, ["wrong"], ["slow"], ["more"], ["429", "", "cut", "", "wrong"]],
    ids=lambda faults: "-".join(faults),
)
def test_faults_that_pass(served, shards, monkeypatch, faults):
    monkeypatch.setattr(server, "READ", 0.5)
    source, local = opened(served), open_source(str(shards / PATTERN))
    served.faults = list(faults)
    served.asked.clear()
    np.testing.assert_array_equal(source[0][0], local[0][0])
    assert served.faults == []
    if faults == ["cut"] * 3:  # it goes on with smaller pieces, not from the start
        ranges = [wanted for method, _, wanted in served.asked if method == "GET"]
        assert ranges[:3] == ["bytes=0-4095", "bytes=0-1023", "bytes=0-511"]
        assert ranges[-1].endswith("-20479")
    check_same(source, local)


@pytest.mark.parametrize("fault", ["", "cut", "503", "wrong"])
def test_a_server_that_knows_no_ranges(served, shards, fault):
    served.parts = False
    source, local = opened(served), open_source(str(shards / PATTERN))
    served.faults = ["", fault]
    check_same(source, local)


def test_damaged_bytes_of_a_shard_without_an_index(without_index, shards):
    without_index.faults = ["wrong"] + [""] * 4
    check_same(opened(without_index), open_source(str(shards / PATTERN)))
    without_index.files["shard-1.tar"] = b"no archive" * 2048
    with pytest.raises(DataError, match="shard-1.tar is no plain .uncompressed. tar file"):
        opened(without_index)


def test_what_cannot_be_opened(served, monkeypatch):
    with pytest.raises(DataError, match="/shard-9.tar: there is no such file on the server"):
        open_source(f"{served.url}/shard-9.tar")
    with pytest.raises(DataError, match="/shard-0.tar has 1.91e-05 GiB, more than the cache .*gib"):
        opened(served, cache_gib=1e-6)
    for name, status in (("401", "401"), ("redirect", "302"), ("418", "418")):
        served.always = name
        with pytest.raises(DataError, match=f"shard-.*HTTP status {status}|TooManyRedirects"):
            opened(served)
    assert len(served.asked) < 200  # redirects are not followed for ever
    served.always = "503"
    with pytest.raises(DataUnavailable, match="shard-.*HTTP status 503, for more than") as caught:
        opened(served)
    assert entry._report(caught.value) == 74
    with pytest.raises(DataUnavailable, match="127.0.0.1"):
        open_source("http://127.0.0.1:9/a.tar")
    for url, why in (
        ("file:///etc/a.tar", "shards can be at http://, https://, s3://"),
        ("simplecache::http://host/a.tar", "shards can be at"),
        ("http://host/a.zip", "ends in .tar"),
        ("http://***@host/a.tar", "does not keep passwords and signatures"),
    ):
        with pytest.raises(DataError, match=why):
            open_source(url)


def test_an_index_that_is_of_no_use(served, shards):
    good = served.files["shard-0.tar.index"]
    for content, why in (
        (b"no index", "shard-0.tar.index is no index .*tools/index_shards.py, or remove it"),
        (good[:-30], "is no index"),
        (served.files.pop("shard-0.tar.index"), None),
    ):
        if why:
            served.files["shard-0.tar.index"] = content
            with pytest.raises(DataError, match=why):
                opened(served)
    served.files["shard-0.tar.index"] = good
    served.files["shard-0.tar"] += bytes(512)
    with pytest.raises(DataError, match="index of a shard of 20,480 bytes, the shard has 20,992"):
        opened(served)
    served.down = {"shard-0.tar.index"}
    with pytest.raises(DataUnavailable, match="shard-0.tar.index: HTTP status 503"):
        opened(served)
    found = parse_index(io.BytesIO(good))
    assert (found.length, len(found.digest.item()), len(found.offset)) == (20480, 64, EACH)


def test_an_index_that_unpacks_to_too_much(served, monkeypatch):
    monkeypatch.setattr(index, "MAX_INDEX", 1000)
    with pytest.raises(DataError, match="bytes, more than an index may have"):
        opened(served)
    packed = io.BytesIO()
    np.savez_compressed(packed, offset=np.zeros(1 << 20))
    monkeypatch.setattr(index, "MAX_INDEX", len(packed.getvalue()) + 1)
    for name in NAMES:
        served.files[f"{name}.index"] = packed.getvalue()
    with pytest.raises(DataError, match="too large when it is unpacked"):
        opened(served)


def test_what_happens_during_a_run(served, shards, tmp_path):
    source = opened(served)
    served.files["shard-0.tar"] = served.files["shard-1.tar"]
    with pytest.raises(DataError, match="shard-0.tar has other bytes .*it has changed since"):
        source[0]
    del served.files["shard-0.tar"]
    with pytest.raises(DataError, match="shard-0.tar: there is no such file on the server"):
        source[0]
    assert kept(tmp_path) == []
    served.files["shard-2.tar"] = served.files["shard-2.tar"][:6000]
    with pytest.raises(DataError, match="shard-2.tar"):
        source[2 * EACH]
    served.always = "503"
    with pytest.raises(DataUnavailable, match="shard-1.tar: HTTP status 503, for more than 1.0 s"):
        source[EACH]
    served.always = "401"
    with pytest.raises(DataError, match="shard-1.tar: HTTP status 401: check the names, passwords"):
        source[EACH]


def test_a_window_that_the_cache_cannot_hold(served):
    source = opened(served, cache_gib=3 * 20480 / 2**30)
    assert shard_windows(source, 3).window == 3
    with pytest.raises(ConfigError, match="train.shard_window=8 shards .* set data.cache_gib to"):
        shard_windows(source, None)
    assert shard_windows(opened(served), None).window == 8


def test_a_missing_package_names_the_extra(monkeypatch):
    import fsspec

    def missing(protocol):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(DataError, match=r"Install s3fs to access S3.*\[remote\]"):
        open_source("s3://bucket/a.tar")


def test_passwords_and_signatures_stay_out_of_messages(served, caplog, shards, capsys):
    secret = served.url.replace("http://", "http://me:geheim@") + f"/{PATTERN}?sig=geheim"
    with caplog.at_level(logging.DEBUG):
        source = open_source(secret)
        served.faults = ["503"]
        check_same(source, open_source(str(shards / PATTERN)))
        served.files.clear()
        for number in kept_of(source):
            number.unlink()
        with pytest.raises(DataError) as caught:
            source[0]
        served.always = "403"
        with pytest.raises(DataError) as refused:
            open_source(secret)
    host = served.url.replace("http://", "")
    assert f"http://***@{host}/shard-0.tar?***: there is no such" in str(caught.value)
    said = f"{caught.value}{refused.value}{source.name(3)}{source.source.shards}"
    own = [record.getMessage() for record in caplog.records if "libai_ext" in record.name]
    assert "geheim" not in said + "".join(own) + "".join(capsys.readouterr())
    assert "***@" in said


@pytest.fixture
def bucket(monkeypatch, shards):
    """An S3 server with the shards in ``bucket``."""
    import boto3
    from moto.server import ThreadedMotoServer

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer(port=0)
    moto.start()
    host, port = moto.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    client = boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket="bucket")
    for path in Path(shards).iterdir():
        client.upload_file(str(path), "bucket", f"digits/{path.name}")
    yield client
    moto.stop()


def test_s3(bucket, shards):
    source, local = open_source(f"s3://bucket/digits/{PATTERN}"), open_source(str(shards / PATTERN))
    check_same(source, local)
    with pytest.raises(DataError, match="s3://bucket/digits/none.tar: there is no such file"):
        open_source("s3://bucket/digits/none.tar")
    for number in kept_of(source):
        number.unlink()
    bucket.put_object(Bucket="bucket", Key="digits/shard-0.tar", Body=bytes(20480))
    with pytest.raises(DataError, match="s3://bucket/digits/shard-0.tar has other bytes"):
        source[0]
    bucket.delete_object(Bucket="bucket", Key="digits/shard-1.tar")
    with pytest.raises(DataError, match="s3://bucket/digits/shard-1.tar: there is no such file"):
        source[EACH]
