"""Tar shards on a server: the same samples as local ones, whatever the server does."""

from __future__ import annotations

import io
import logging
import os
import signal
import threading
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from image_files import encode, pixels
from made_sets import write_tar
from shard_server import ShardServer

from libai_ext.data import retry
from libai_ext.data.dataset import KeyedDataset
from libai_ext.data.fingerprint import fingerprint
from libai_ext.data.loader import Loader
from libai_ext.data.remote import index, server
from libai_ext.data.remote.index import write_beside
from libai_ext.data.sampler import GlobalOrder, TrainSampler
from libai_ext.data.sharded import shard_windows
from libai_ext.data.sources import open_images, open_source
from libai_ext.data.tar_shards import parse_index
from libai_ext.data.workers import prefetch
from libai_ext.engine import cli as entry
from libai_ext.errors import ConfigError, DataError, DataUnavailable

SHARDS, EACH = 5, 6
NAMES = [f"shard-{number}.tar" for number in range(SHARDS)]
PATTERN = "shard-{0..4}.tar"


@pytest.fixture(autouse=True)
def _quick(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(retry, "RETRY_SECONDS", 1.0)
    monkeypatch.setattr(server, "PIECE", 4096)
    monkeypatch.setattr(server, "SMALLEST", 512)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Shards of images with classes, and their indices."""
    folder = tmp_path_factory.mktemp("shards")
    for number, name in enumerate(NAMES):
        rows = []
        for image in range(EACH * number, EACH * number + EACH):
            rows += [(f"{image}.cls", b"%d" % (image % 3)), (f"{image}.png", encode(pixels(image)))]
        write_beside(write_tar(folder / name, rows))
    return folder


@pytest.fixture
def served(folder):
    with ShardServer({path.name: path.read_bytes() for path in folder.iterdir()}) as server:
        yield server
        server.shutdown()


@pytest.fixture
def without_index(served):
    for name in NAMES:
        del served.files[f"{name}.index"]
    return served


def opened(served, **options):
    return open_source(f"{served.url}/{PATTERN}", **options)


def kept(tmp_path, kind="*.tar"):
    return sorted((tmp_path / "cache/libai_ext/libai_ext_shards").glob(kind))


def in_child(function):
    """Run a function in a process of its own, as a data worker is."""
    return next(prefetch(lambda *_: function(), [None], 1, 1))


def check_same(source, local):
    assert (len(source), source.classes) == (len(local), local.classes) == (30, ["0", "1", "2"])
    np.testing.assert_array_equal(source.labels, local.labels)
    assert fingerprint(source) == fingerprint(local)
    remote = source.source
    in_child(lambda: [remote.cache.fetch(shard) for shard in remote.found])
    for number in range(len(local)):
        (image, label), (expected, of) = source[number], local[number]
        np.testing.assert_array_equal(image, expected)
        assert label == of


def test_the_samples_are_those_of_local_shards(served, folder, tmp_path):
    source = opened(served)
    assert served.fetched() == [f"{name}.index" for name in NAMES]
    check_same(source, open_source(str(folder / PATTERN)))
    assert source.name(7) == f"{served.url}/shard-1.tar:7.png"
    assert [path.stat().st_size for path in kept(tmp_path)] == [20480] * 5
    served.asked.clear()
    assert len(opened(served)) == len(open_images([f"{served.url}/{PATTERN}"])) == 30
    assert {method for method, _, _ in served.asked} == {"HEAD"}


def test_without_indices_each_shard_is_fetched_once(without_index, folder, caplog):
    with caplog.at_level(logging.INFO):
        source = opened(without_index)
    check_same(source, open_source(str(folder / PATTERN)))
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
def test_the_batches_are_those_of_local_shards(served, folder, tmp_path, ranks):
    """With two data workers a rank and a cache of three shards; every second rank starts in the
    middle, as after an interruption."""
    local, limit = open_source(str(folder / PATTERN)), 3 * 20480
    source, most, done = opened(served, cache_gib=limit / 2**30), [], threading.Event()
    data, expected = (KeyedDataset(each, to_array, labels=True) for each in (source, local))

    def watch():
        while not done.is_set():
            sizes = [0]
            for path in [*kept(tmp_path), *kept(tmp_path, "*.part")]:
                try:
                    sizes.append(path.stat().st_size)
                except FileNotFoundError:
                    pass
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
def test_faults_that_pass(served, folder, monkeypatch, faults):
    monkeypatch.setattr(server, "READ", 0.5)
    source, local = opened(served), open_source(str(folder / PATTERN))
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
def test_a_server_that_knows_no_ranges(served, folder, fault):
    served.parts = False
    source, local = opened(served), open_source(str(folder / PATTERN))
    served.faults = ["", fault]
    check_same(source, local)


def test_damaged_bytes_of_a_shard_without_an_index(without_index, folder):
    without_index.faults = ["wrong"] + [""] * 4
    check_same(opened(without_index), open_source(str(folder / PATTERN)))
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


def test_an_index_that_is_of_no_use(served, folder):
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


def test_what_happens_during_a_run(served, folder, tmp_path):
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


def test_passwords_and_signatures_stay_out_of_messages(served, caplog, folder, capsys):
    secret = served.url.replace("http://", "http://me:geheim@") + f"/{PATTERN}?sig=geheim"
    with caplog.at_level(logging.DEBUG):
        source = open_source(secret)
        served.faults = ["503"]
        check_same(source, open_source(str(folder / PATTERN)))
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


def kept_of(source):
    return [source.source.cache.path(shard) for shard in source.source.found]


def test_a_killed_process_leaves_what_another_one_goes_on_with(served, folder, tmp_path):
    source = opened(served).source
    served.faults = ["", "", "slow"]
    served.asked.clear()
    child = os.fork()
    if not child:
        source.cache.fetch(source.found[0])
        os._exit(0)
    while not any(path.stat().st_size == 8192 for path in kept(tmp_path, "*.part")):
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert kept(tmp_path) == []
    np.testing.assert_array_equal(source[0][0], pixels(0))
    starts = [row[2] for row in served.asked if row[0] == "GET"]
    assert starts.count("bytes=0-4095") == 1 and "bytes=8192-12287" in starts
    assert kept(tmp_path, "*.part") == []


def test_what_a_crash_may_leave_is_not_taken_for_whole(served, tmp_path):
    source = opened(served).source
    shard = source.found[0]
    source[0]
    whole = source.cache.path(shard)
    whole.write_bytes(whole.read_bytes()[:5000])
    np.testing.assert_array_equal(source[0][0], pixels(0))
    whole.rename(tmp_path / f"{whole.parent}/{shard.key}.{shard.size}.part")
    part = kept(tmp_path, "*.part")[0]
    part.write_bytes(bytes(8000))  # blocks that did not reach the disk
    np.testing.assert_array_equal(source[0][0], pixels(0))
    assert whole.stat().st_size == shard.size


def test_the_least_recently_used_goes_and_never_one_in_use(served, tmp_path):
    source = opened(served, cache_gib=3 * 20480 / 2**30).source
    shards, store = source.found, source.cache
    mine = store.folder / "notes.tar"
    store.folder.mkdir(parents=True)
    mine.write_bytes(bytes(90000))
    for number in (0, 1, 2):
        source[EACH * number]
    source[0]
    source[EACH * 3]
    assert set(kept(tmp_path)) == {mine, *(store.path(shards[k]) for k in (0, 2, 3))}
    with store.open(shards[2]):
        source[EACH * 4]
        source[EACH * 1]
        assert store.path(shards[2]).exists()
        with store.open(shards[1]), store.open(shards[4]):
            in_child(lambda: store.fetch(shards[0], wait=False))
            assert not store.path(shards[0]).exists()
            threading.Timer(0.3, mine.touch).start()
    source[0]
    assert len(kept(tmp_path)) == 4 and store.path(shards[0]).exists()


def test_processes_fetch_a_shard_once(served):
    source = opened(served).source
    served.asked.clear()
    made = prefetch(lambda worker, number, _: source[0][1], [None] * 4, 4, 1)
    assert list(made) == [0] * 4
    assert len([row for row in served.asked if row[0] == "GET"]) == 5  # pieces


def test_a_full_disk(served, small_disk):
    source = opened(served, cache_dir=str(small_disk.folder)).source
    for number in range(4):
        source[EACH * number]
    small_disk.fill()
    source[EACH * 4]  # in place of the others
    assert source.cache.path(source.found[4]).exists()
    source.cache.remove(source.found[4])
    for shard in source.found:
        source.cache.remove(shard)
    small_disk.fill()
    with pytest.raises(DataUnavailable, match="No space left on device in .*/disk"):
        source[0]
    small_disk.free()
    np.testing.assert_array_equal(source[0][0], pixels(0))


def test_a_folder_that_cannot_be_used(served, tmp_path):
    (tmp_path / "file").write_text("")
    source = opened(served, cache_dir=str(tmp_path / "file"))
    with pytest.raises(DataError, match="cannot be kept in .*Not a directory.*set data.cache_dir"):
        source[0]


@pytest.fixture
def bucket(monkeypatch, folder):
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
    for path in Path(folder).iterdir():
        client.upload_file(str(path), "bucket", f"digits/{path.name}")
    yield client
    moto.stop()


def test_s3(bucket, folder):
    source, local = open_source(f"s3://bucket/digits/{PATTERN}"), open_source(str(folder / PATTERN))
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
