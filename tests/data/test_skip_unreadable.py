from __future__ import annotations

import logging
import multiprocessing
import pickle

import numpy as np
import pytest
from image_files import bad_files, encode, pixels

from libai_ext.data import skip_unreadable
from libai_ext.data.dataset import KeyedDataset
from libai_ext.data.decode import BadImage
from libai_ext.data.image_folder import ImageFolder
from libai_ext.data.sampler import GlobalOrder, SampleKey, TrainSampler
from libai_ext.data.skip_unreadable import SkipUnreadable
from libai_ext.data.transforms import ToArray
from libai_ext.errors import DataError


class Numbers:
    """Sample i is (i, 10 i); the bad ones raise."""

    classes = ["number"]

    def __init__(self, count, bad):
        self.count, self.bad, self.reads = count, set(bad), []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.reads.append(index)
        if index in self.bad:
            raise BadImage(f"number {index}", "made so")
        return index, 10 * index


def test_the_next_readable_sample_stands_in_for_a_bad_one():
    source = SkipUnreadable(Numbers(6, bad=[1, 2, 5]), max_bad_share=1)
    assert (len(source), source.classes) == (6, ["number"])
    expected = [(0, 0), (3, 30), (3, 30), (3, 30), (4, 40), (0, 0)]
    assert [source[i] for i in range(6)] == expected
    assert (source.drawn, source.bad) == (6, 3)


def test_any_order_and_process_gives_the_same():
    expected = [SkipUnreadable(Numbers(50, bad=range(0, 50, 3)), 1)[i] for i in range(50)]
    order = np.random.default_rng(0).permutation(50)
    source = SkipUnreadable(Numbers(50, bad=range(0, 50, 3)), 1)
    assert [source[i] for i in order] == [expected[i] for i in order]
    again = pickle.loads(pickle.dumps(source))
    assert [again[i] for i in range(50)] == expected


def test_each_bad_one_is_logged_once_and_not_read_again(caplog):
    numbers = Numbers(4, bad=[1])
    source = SkipUnreadable(numbers, max_bad_share=1)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            for index in range(4):
                source[index]
    assert caplog.messages == [
        "cannot read image number 1: made so; sample 2 replaces sample 1 "
        "(1 bad of 2 read by this process)"
    ]
    assert (source.drawn, source.bad, numbers.reads.count(1)) == (12, 3, 1)


def drawn_before_stop(source, limit):
    for index in range(limit):
        try:
            source[index]
        except DataError as error:
            return index + 1, str(error)
    return limit, None


def test_totals_add_up_over_processes():
    source = SkipUnreadable(Numbers(40, bad=range(0, 40, 4)), max_bad_share=1)

    def read(first):
        for index in range(first, 40, 3):
            source[index]

    workers = [multiprocessing.Process(target=read, args=(first,)) for first in (0, 1)]
    for worker in workers:
        worker.start()
    read(2)
    for worker in workers:
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert source.totals() == (40, 10)
    assert (source.drawn, source.bad) == (13, 3)
    assert pickle.loads(pickle.dumps(source)).totals() == (0, 0)


@pytest.mark.parametrize(
    "every, share, drawn",
    [
        (2, 0.01, 20),  # ten bad ones, the floor
        (50, 0.01, 500),  # 2 %: at the tenth
        (100, 0.01, 2000),  # exactly the allowed share
        (10, 0.2, 2000),
        (7, 0, 7),  # none allowed
    ],
)
def test_too_many_stop_the_run(every, share, drawn):
    source = SkipUnreadable(Numbers(2000, bad=range(every - 1, 2000, every)), share)
    assert drawn_before_stop(source, 2000)[0] == drawn


def test_the_message_counts():
    source = SkipUnreadable(Numbers(100, bad=range(0, 100, 2)), 0.25)
    drawn, message = drawn_before_stop(source, 100)
    assert (drawn, message) == (
        19,
        "10 of the 19 images read by this process are bad, more than data.max_bad_share=0.25 "
        "allows; the last: cannot read image number 18: made so",
    )


def test_nothing_readable(monkeypatch):
    with pytest.raises(DataError, match="no readable image among 3 from number 1 on; .* number 1:"):
        SkipUnreadable(Numbers(3, bad=range(3)))[1]
    monkeypatch.setattr(skip_unreadable, "MAX_RUN", 20)
    numbers = Numbers(1000, bad=range(990))
    with pytest.raises(DataError, match="no readable image among 20 from number 5 on"):
        SkipUnreadable(numbers)[5]
    assert len(numbers.reads) == 20


def test_other_errors_pass(tmp_path):
    """A file that is gone is no bad image: on another machine it may be there."""
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(encode(pixels()))
    source = SkipUnreadable(ImageFolder([str(tmp_path)]))
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match="cannot open .*a.png: No such file"):
        source[0]


def test_a_folder_with_bad_files_gives_any_layout_the_same_batches(tmp_path):
    (tmp_path / "x").mkdir()
    for number in range(40):
        (tmp_path / f"x/{number:02d}.png").write_bytes(encode(pixels(number, 8, 8)))
    for place, data in zip((3, 4, 11, 20, 39), bad_files().values()):
        (tmp_path / f"x/{place:02d}.png").write_bytes(data)
    order = GlobalOrder(40, 8, seed=1)

    def batches(ranks):
        """The images of five batches, each rank with a source of its own."""
        streams = []
        for rank in range(ranks):
            source = SkipUnreadable(ImageFolder([str(tmp_path)]), max_bad_share=0.3)
            data = KeyedDataset(source, ToArray([0.5] * 3, [0.5] * 3))
            sampler = iter(TrainSampler(order, rank, ranks))
            streams.append([[data[key]["images"] for key in next(sampler)] for _ in range(5)])
        return np.array([sum((stream[i] for stream in streams), []) for i in range(5)])

    alone = batches(1)
    assert alone.shape == (5, 8, 3, 8, 8)
    np.testing.assert_array_equal(batches(2), alone)
    np.testing.assert_array_equal(batches(4), alone)
    whole = KeyedDataset(ImageFolder([str(tmp_path)]), ToArray([0.5] * 3, [0.5] * 3))
    place = [key.index for i in range(5) for key in order.batch(i)].index(3)
    np.testing.assert_array_equal(
        alone.reshape(40, 3, 8, 8)[place], whole[SampleKey(0, 5)]["images"]
    )
