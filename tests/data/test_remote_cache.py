"""The cache of shards from a server: bounded, shared by processes, whole after a crash."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest
from image_files import pixels
from remote_sets import EACH, in_child, kept, opened

from libai_ext.data.workers import prefetch
from libai_ext.errors import DataError, DataUnavailable

pytestmark = pytest.mark.usefixtures("quick_retries")


def test_a_killed_process_leaves_what_another_one_goes_on_with(served, shards, tmp_path):
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
            reader = threading.Timer(0.3, mine.touch)
            reader.start()
    source[0]
    reader.join()
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
