from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from libai_ext.engine.stages import balance


def largest(costs, stage_ids):
    return max(sum(c for c, s in zip(costs, stage_ids) if s == stage) for stage in set(stage_ids))


def test_known_cuts():
    assert balance([1, 1, 1, 1], 2) == [0, 0, 1, 1]
    assert balance([1, 1, 1, 3], 2) == [0, 0, 0, 1]
    assert balance([3, 1, 1, 1, 3], 3) == [0, 1, 1, 1, 2]
    assert balance([1, 2, 3], 1) == [0, 0, 0]


@pytest.mark.parametrize("seed", range(20))
def test_no_cut_is_better(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(4, 9))
    stages = int(rng.integers(2, 5))
    costs = rng.integers(1, 10, count).tolist()
    found = balance(costs, stages)
    assert found == sorted(found) and set(found) == set(range(stages))
    every = [
        [sum(layer >= cut for cut in cuts) for layer in range(count)]
        for cuts in combinations(range(1, count), stages - 1)
    ]
    assert largest(costs, found) == min(largest(costs, ids) for ids in every)


def test_a_limit_of_size_moves_the_cut():
    costs, sizes = [1, 1, 1, 3], [2, 2, 2, 1]
    assert balance(costs, 2, sizes, limit=5) == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="4 layers cannot be divided into 2 stages of size 3"):
        balance(costs, 2, sizes, limit=3)


def test_more_stages_than_layers():
    with pytest.raises(ValueError, match="2 layers cannot be divided into 3 stages"):
        balance([1, 1], 3)
