from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import oneflow as flow
import pytest

from libai_ext.data import dataset, loader
from libai_ext.data.dataset import stack
from libai_ext.data.loader import Loader
from libai_ext.data.shared_batches import SharedBatches


class Samples:
    """Sample ``key``: its number in a square that grows from batch to batch, and in two more
    types."""

    collate = staticmethod(stack)

    def __getitem__(self, key):
        batch, number = key
        side = 8 * (batch % 5 + 1)
        return {
            "images": np.full((2, side, side), number, np.float32),
            "flags": np.uint8([number % 2, 1, 0]),
            "labels": np.int64(number),
        }


BATCHES = [[(batch, 10 * batch + i) for i in range(1 + batch % 3)] for batch in range(40)]


def arrays(batches):
    for batch in batches:
        yield {name: data.tensor.numpy() for name, data in batch.get_fields().items()}


@pytest.fixture(
    params=["/memfd:batch", "/dev/shm/#"] if hasattr(os, "memfd_create") else ["/dev/shm/#"]
)
def memory(request, monkeypatch):
    """Each kind of memory that this Python has, as it is called in the maps of a process."""
    if request.param == "/dev/shm/#":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    return request.param


def check(arrived):
    assert len(arrived) == len(BATCHES)
    for keys, batch in zip(BATCHES, arrived):
        expected = stack([Samples()[key] for key in keys])
        assert list(batch) == ["images", "flags", "labels"]
        for name, array in expected.items():
            assert batch[name].dtype == array.dtype
            np.testing.assert_array_equal(batch[name], array)


def test_batches_of_no_worker():
    check(list(arrays(Loader(Samples(), BATCHES, 0))))


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_arrive_as_they_were_made(workers, memory):
    """Of changing size, and each kept while the next ones come."""
    check(list(arrays(Loader(Samples(), BATCHES, workers))))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_far_ahead_leave_a_batch_alone_that_is_being_read(workers, monkeypatch):
    unpack = SharedBatches.unpack

    def slowly(self, packed):
        time.sleep(0.02)
        return unpack(self, packed)

    monkeypatch.setattr(SharedBatches, "unpack", slowly)
    check(list(arrays(Loader(Samples(), BATCHES, workers))))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_batch_stays_until_the_next_is_asked_for(workers, monkeypatch):
    """Where its arrays are copied at once, they are not copied before."""

    def slow_copy(array):
        time.sleep(0.005)
        return flow.from_numpy(array.copy())

    monkeypatch.setattr(loader, "shares_memory", lambda: False)
    monkeypatch.setattr(dataset, "host_tensor", slow_copy)
    check(list(arrays(Loader(Samples(), BATCHES, workers))))


def test_a_loader_left_in_the_middle_gives_its_memory_back(memory):
    def held():
        places = (os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))
        return [place for place in places if place.startswith(memory)]

    batches = iter(Loader(Samples(), BATCHES, 2))
    for _ in range(5):
        next(batches)
    assert held()
    del batches
    deadline = time.monotonic() + 10  # the engine frees its tensors on a thread of its own
    while held() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not held()


def test_a_kill_would_leave_no_shared_memory(memory):
    """All of it is nameless, here and in the workers, as long as a batch is on its way."""
    batches = iter(Loader(Samples(), BATCHES, 2))
    next(batches), next(batches)  # one of each worker
    me = os.getpid()
    children = Path(f"/proc/{me}/task/{me}/children").read_text().split()
    holders = 0
    for process in [me, *children]:
        maps = Path(f"/proc/{process}/maps").read_text().splitlines()
        shared = [line for line in maps if memory in line or "/dev/shm/" in line]
        assert all(line.endswith(" (deleted)") for line in shared), shared
        holders += any(memory in line for line in shared)
    assert holders == 3
