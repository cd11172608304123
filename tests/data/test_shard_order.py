"""The order of samples by shards."""

from __future__ import annotations

import numpy as np
import pytest
from image_files import encode, pixels
from made_sets import write_tar
from test_sampler import shares

from libai_ext.data.concat import Concat
from libai_ext.data.image_folder import ImageFolder
from libai_ext.data.sampler import GlobalOrder
from libai_ext.data.shard_order import ShardWindows
from libai_ext.data.sharded import shard_windows
from libai_ext.data.skip_unreadable import SkipUnreadable
from libai_ext.data.tar_shards import TarShards
from libai_ext.errors import ConfigError

SIZES = [5, 3, 0, 4, 6, 3]  # of 21 samples
SHARD = np.repeat(np.arange(6), SIZES)


def order_of(window=2, seed=3, **options):
    return GlobalOrder(21, 8, seed, shards=ShardWindows(SIZES, window), **options)


def epoch_of(order, epoch):
    keys = [key for i in range(8) for key in order.batch(i)][:63]
    return [key.index for key in keys if key.epoch == epoch]


@pytest.mark.parametrize("remainder", ["carry", "drop"])
@pytest.mark.parametrize("micro_steps", [1, 2])
def test_every_process_count_and_a_resumed_run_take_the_same_batches(remainder, micro_steps):
    order = order_of(remainder=remainder)
    expected = [order.batch(i) for i in range(6)]
    for ranks in (1, 2, 4):
        assert shares(order_of(remainder=remainder), ranks, micro_steps) == expected
        late = shares(order_of(remainder=remainder), ranks, micro_steps, 2, start_iter=4)
        assert late == expected[4:]


@pytest.mark.parametrize("window", [1, 2, 4, 6, 100])
def test_an_epoch_is_a_permutation_in_windows(window):
    order = order_of(window)
    seen = []
    for epoch in range(3):
        samples = epoch_of(order, epoch)
        assert sorted(samples) == list(range(21))
        windows = order.shards.windows(np.random.default_rng([3, epoch]))
        assert sorted(np.concatenate(windows)) == list(range(6))
        assert {len(shards) for shards in windows[:-1]} <= {window}
        for shards in windows:
            count = order.shards.sizes[shards].sum()
            assert {SHARD[s] for s in samples[:count]} == {s for s in shards if SIZES[s]}
            samples = samples[count:]
        seen.append([tuple(shards) for shards in windows])
    assert seen[0] != seen[1] != seen[2] or window == 100


def test_the_numbers_stay_as_they_are():
    """A resumed run of an earlier version needs them."""
    expected = [20, 19, 18, 5, 7, 16, 13, 17, 14, 15, 6, 12, 10, 9, 2, 0, 8, 3, 11, 1, 4]
    assert sorted(expected) == list(range(21))
    assert epoch_of(order_of(), 0) == expected


def test_another_seed_or_window_is_another_order():
    assert epoch_of(order_of(), 0) != epoch_of(order_of(seed=4), 0)
    assert epoch_of(order_of(), 0) != epoch_of(order_of(window=3), 0)


@pytest.mark.parametrize("remainder", ["carry", "drop"])
def test_the_shards_of_the_next_batches(remainder):
    order = order_of(remainder=remainder)
    for iteration in range(12):
        now, following = order.shards_at(iteration)
        first = order.batch(iteration)[0]
        assert SHARD[first.index] in now
        windows = order.shards.windows(np.random.default_rng([3, first.epoch]))
        places = [list(window) for window in windows]
        place = places.index(now)
        if place + 1 < len(places):
            assert following == places[place + 1]
        else:
            windows = order.shards.windows(np.random.default_rng([3, first.epoch + 1]))
            assert following == list(windows[0])


@pytest.fixture
def sources(tmp_path):
    """Tar shards of 3, 2 and 1 samples, and a folder of one image."""
    for number, count in enumerate((3, 2, 1)):
        rows = [(f"{i}.png", encode(pixels(i))) for i in range(count)]
        write_tar(tmp_path / f"{number}.tar", rows)
    (tmp_path / "folder/x").mkdir(parents=True)
    (tmp_path / "folder/x/0.png").write_bytes(encode(pixels()))
    return TarShards(str(tmp_path / "{0..1}.tar")), TarShards(str(tmp_path / "2.tar")), tmp_path


def test_several_roots(sources):
    first, second, folder = sources
    shards = shard_windows(SkipUnreadable(Concat([first, second])), 2)
    assert (list(shards.sizes), list(shards.first), shards.window) == ([3, 2, 1], [0, 3, 5], 2)
    assert shard_windows(SkipUnreadable(Concat([first, second])), None) is None
    mixed = SkipUnreadable(Concat([first, ImageFolder([str(folder / "folder")])]))
    assert shard_windows(mixed, None) is None
    with pytest.raises(ConfigError, match="train.shard_window: all roots .* or leave it unset"):
        shard_windows(mixed, 2)
