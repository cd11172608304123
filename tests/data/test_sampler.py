from __future__ import annotations

from itertools import islice

import pytest

from libai_ext.data.sampler import EvalSampler, GlobalOrder, SampleKey, TrainSampler


def shares(order, ranks, micro_steps=1, iterations=6, start_iter=0):
    """Per iteration the global batch as the ranks' shares make it up."""
    streams = [
        islice(
            iter(TrainSampler(order, r, ranks, start_iter, micro_steps)), iterations * micro_steps
        )
        for r in range(ranks)
    ]
    streams = [list(stream) for stream in streams]
    return [
        [key for s in streams for step in range(micro_steps) for key in s[i * micro_steps + step]]
        for i in range(iterations)
    ]


@pytest.mark.parametrize("remainder", ["carry", "drop"])
@pytest.mark.parametrize("micro_steps", [1, 2])
def test_every_process_count_makes_the_same_batches(remainder, micro_steps):
    order = GlobalOrder(21, 8, seed=3, remainder=remainder)
    expected = [order.batch(i) for i in range(6)]
    for ranks in (1, 2, 4):
        assert shares(order, ranks, micro_steps) == expected


def test_carry_sees_every_sample_once_an_epoch():
    order = GlobalOrder(21, 8, seed=3)
    stream = [key for i in range(8) for key in order.batch(i)][:63]
    assert [key.epoch for key in stream] == [0] * 21 + [1] * 21 + [2] * 21
    for epoch in range(3):
        assert sorted(k.index for k in stream if k.epoch == epoch) == list(range(21))
    assert stream[:21] != [SampleKey(0, k.index) for k in stream[21:42]]


def test_drop_leaves_out_the_remainder():
    order = GlobalOrder(21, 8, seed=3, remainder="drop")
    batches = [order.batch(i) for i in range(4)]
    assert [{key.epoch for key in batch} for batch in batches] == [{0}, {0}, {1}, {1}]
    assert len({key.index for batch in batches[:2] for key in batch}) == 16


def test_resume_continues_the_stream():
    order = GlobalOrder(21, 8, seed=3)
    assert shares(order, 2, iterations=3, start_iter=3) == [order.batch(i) for i in (3, 4, 5)]


def test_seed_changes_the_order():
    assert GlobalOrder(21, 8, seed=3).batch(0) != GlobalOrder(21, 8, seed=4).batch(0)


@pytest.mark.parametrize(
    "samples, remainder, iterations", [(1797, "carry", 140.390625), (1797, "drop", 140.0)]
)
def test_iterations_of_ten_epochs(samples, remainder, iterations):
    order = GlobalOrder(samples, 128, seed=0, remainder=remainder)
    assert order.iterations(10) == -(-iterations // 1)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0, 8, 0), "empty"),
        ((5, 8, 0, "drop"), "5 samples, fewer than one batch of 8"),
        ((5, 8, 0, "keep"), "'keep'"),
    ],
)
def test_what_cannot_be_sampled(arguments, message):
    with pytest.raises(ValueError, match=message):
        GlobalOrder(*arguments)


@pytest.mark.parametrize("samples", range(1, 20))
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_evaluation_sees_every_sample_once(samples, ranks):
    samplers = [EvalSampler(samples, 2, rank, ranks) for rank in range(ranks)]
    seen = []
    for number, parts in enumerate(zip(*samplers)):
        rows = [key.index for part in parts for key in part]
        assert len(rows) == 2 * ranks
        seen += rows[: samplers[0].valid(number)]
    assert seen == list(range(samples))
