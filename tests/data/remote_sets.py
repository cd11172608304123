"""Shards on a server of this machine, and what the tests of remote shards ask of them."""

from __future__ import annotations

import numpy as np

from libai_ext.data.fingerprint import fingerprint
from libai_ext.data.sources import open_source
from libai_ext.data.workers import prefetch

SHARDS, EACH = 5, 6
NAMES = [f"shard-{number}.tar" for number in range(SHARDS)]
PATTERN = "shard-{0..4}.tar"


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


def kept_of(source):
    return [source.source.cache.path(shard) for shard in source.source.found]
