from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from libai_ext.data.mixup import (
    NO_MIX,
    Mix,
    Mixer,
    cutmix,
    decide,
    mix_images,
    mix_targets,
    one_hot,
)
from libai_ext.errors import ConfigError
from projects.MAE.run import resolve

GOLDEN = np.load(Path(__file__).resolve().parents[1] / "golden" / "augment_numbers.npz")


def test_labels_by_hand():
    np.testing.assert_allclose(one_hot([1], 4), [[0, 1, 0, 0]])
    np.testing.assert_allclose(one_hot([1], 4, 0.2), [[0.05, 0.85, 0.05, 0.05]])
    targets = mix_targets([0, 2], [2, 2], Mix(0.75), 4, smoothing=0.2)
    np.testing.assert_allclose(
        targets, [[0.65, 0.05, 0.25, 0.05], [0.05, 0.05, 0.85, 0.05]], rtol=1e-6
    )
    assert targets.dtype == np.float32
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)
    for wrong in (-1, 4):
        with pytest.raises(ValueError, match=f"label {wrong} is not one of 4 classes"):
            one_hot([0, wrong], 4)


def test_images_by_hand():
    images = np.arange(8, dtype=np.float32).reshape(2, 1, 2, 2)
    partners = images[::-1]
    np.testing.assert_array_equal(
        mix_images(images, partners, Mix(0.25)),
        [[[[3, 4], [5, 6]]], [[[1, 2], [3, 4]]]],
    )
    cut = mix_images(images, partners, Mix(0.75, (0, 1, 1, 2)))
    np.testing.assert_array_equal(cut, [[[[0, 5], [2, 3]]], [[[4, 1], [6, 7]]]])
    assert images.ravel().tolist() == list(range(8))
    assert mix_images(images, partners, NO_MIX) is images
    one = mix_images(images[0], images[1], Mix(0.75, (0, 1, 1, 2)))
    np.testing.assert_array_equal(one, cut[0])


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_algebra_is_that_of_timm(kind):
    images, labels = GOLDEN["mix/images"], GOLDEN["mix/labels"]
    box = tuple(GOLDEN["cutmix/box"].tolist()) if kind == "cutmix" else None
    mix = Mix(float(GOLDEN[f"{kind}/lam"]), box)
    mixed = mix_images(images, images[::-1], mix)
    assert mixed.dtype == np.float32
    np.testing.assert_array_equal(mixed, GOLDEN[f"{kind}/images"])
    targets = mix_targets(labels, labels[::-1], mix, 5)
    np.testing.assert_array_equal(targets, GOLDEN[f"{kind}/targets"])


def test_boxes_are_those_of_timm():
    for height, width, lam, y, x, *box, left_over in GOLDEN["cutmix"]:
        mix = cutmix(int(height), int(width), lam, (int(y), int(x)))
        assert mix.box == tuple(box)
        assert mix.lam == left_over


def batch_of(count, size=8):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(count, 3, size, size)).astype(np.float32)
    return [{"images": image, "labels": np.int64(i % 7)} for i, image in enumerate(images)]


@pytest.mark.parametrize("group_size", [None, 6])
@pytest.mark.parametrize("ranks, micro_steps", [(2, 1), (4, 1), (2, 2), (3, 2), (12, 1)])
def test_every_layout_mixes_the_same(ranks, micro_steps, group_size):
    """A piece of the batch, mixed by who knows no other piece, is that of the mixed batch."""
    mixer, samples = Mixer(7, group_size=group_size), batch_of(24)
    for iteration in range(6):
        whole = mixer(samples, 3, iteration, range(24))
        parts = [
            mixer([samples[i] for i in rows], 3, iteration, rows.tolist())
            for rows in np.split(np.arange(24), ranks * micro_steps)
        ]
        for expected, got in zip(whole, [sample for part in parts for sample in part]):
            assert got.keys() == {"images", "labels"}
            np.testing.assert_array_equal(got["images"], expected["images"])
            np.testing.assert_array_equal(got["labels"], expected["labels"])


def test_neighbours_are_mixed_by_their_groups_decision():
    samples = batch_of(8)
    samples[3]["noise"] = "stays"
    mixed = Mixer(7, smoothing=0.2, group_size=4, cutmix_alpha=0)(samples, 3, 5, range(8))
    for position, out in enumerate(mixed):
        mix = decide(3, 5, 8, 8, cutmix_alpha=0, group=position // 4)
        other = position ^ 1
        images = samples[position]["images"], samples[other]["images"]
        np.testing.assert_array_equal(out["images"], mix_images(*images, mix))
        np.testing.assert_array_equal(
            out["labels"], mix_targets([position % 7], [other % 7], mix, 7, 0.2)[0]
        )
    assert mixed[3]["noise"] == "stays" and samples[3]["labels"] == 3


def test_samples_without_partner():
    samples = batch_of(3)
    for positions in ([0, 1, 2], [1, 2, 3]):
        with pytest.raises(ConfigError, match="a micro-batch of 3 samples"):
            Mixer(7)(samples, 0, 0, positions)
    with pytest.raises(ConfigError, match="group_size must be even, not 3"):
        Mixer(7, group_size=3)


def test_without_mixing_no_sample_needs_a_partner():
    """Labels are smoothed all the same, as in the official code."""
    samples = batch_of(3)
    found = Mixer(7, smoothing=0.2, mixup_alpha=0, cutmix_alpha=0)(samples, 0, 0, [0, 1, 2])
    for mine, sample in zip(found, samples):
        np.testing.assert_array_equal(mine["images"], sample["images"])
        np.testing.assert_allclose(mine["labels"], one_hot([sample["labels"]], 7, 0.2)[0])


@pytest.mark.parametrize("mixed", [True, False])
def test_an_odd_micro_batch_is_refused_where_samples_are_mixed(mixed):
    opts = ["train.train_micro_batch_size=5", "train.global_batch_size=null"]
    off = [f"dataloader.train.dataset.mixer.{name}=0" for name in ("mixup_alpha", "cutmix_alpha")]
    if mixed:
        with pytest.raises(ConfigError, match=f"size 5 is odd: .*{off[0]} {off[1]} switch it off"):
            resolve("mae_finetune", opts)
        opts.append(off[0])
        with pytest.raises(ConfigError, match="size 5 is odd"):
            resolve("mae_finetune", opts)
    else:
        assert resolve("mae_finetune", [*opts, *off]).train.train_micro_batch_size == 5


def test_decisions_follow_their_key():
    decisions = [decide(3, iteration, 224, 224) for iteration in range(50)]
    assert decisions == [decide(3, iteration, 224, 224) for iteration in range(50)]
    assert len(set(decisions)) == 50
    assert not set(decisions) & {decide(4, iteration, 224, 224) for iteration in range(50)}
    assert not set(decisions) & {decide(3, i, 224, 224, group=1) for i in range(50)}


def test_distribution():
    count = 8000
    decisions = [decide(0, iteration, 200, 300) for iteration in range(count)]
    cut = [mix for mix in decisions if mix.box is not None]
    assert len(cut) / count == pytest.approx(0.5, abs=0.02)
    # Mixup: Beta(0.8, 0.8), symmetric, variance 1 / (4 * (2 * 0.8 + 1)).
    lam = np.array([mix.lam for mix in decisions if mix.box is None])
    assert lam.mean() == pytest.approx(0.5, abs=0.02)
    assert lam.var() == pytest.approx(1 / 10.4, abs=0.004)
    assert np.quantile(lam, [0.1, 0.9]) == pytest.approx([0.0711, 0.9289], abs=0.012)
    # CutMix: lam uniform, then a box of side sqrt(1 - lam) with a uniform centre, cut off.
    # Of a side s the mean that stays inside is s - s^2 / 4, and E[(s - s^2/4)^2] for s^2
    # uniform is 1/2 - 1/5 + 1/48.
    lam = np.array([mix.lam for mix in cut])
    assert 1 - lam.mean() == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=0.02)
    boxes = np.array([mix.box for mix in cut])
    height, width = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    np.testing.assert_array_equal(lam, 1 - height * width / 60_000)
    assert boxes.min() == 0 and boxes[:, 2].max() == 200 and boxes[:, 3].max() == 300
    centers = (boxes[:, 0] + boxes[:, 2]) / 2
    assert centers.mean() == pytest.approx(100, abs=2)


def test_switches():
    few = range(60)
    assert {decide(0, i, 8, 8, probability=0.0) for i in few} == {NO_MIX}
    assert {decide(0, i, 8, 8, mixup_alpha=0, cutmix_alpha=0) for i in few} == {NO_MIX}
    assert all(decide(0, i, 8, 8, mixup_alpha=0).box for i in few)
    assert all(decide(0, i, 8, 8, cutmix_alpha=0).box is None for i in few)
    some = sum(decide(0, i, 8, 8, probability=0.3) != NO_MIX for i in range(2000))
    assert 520 < some < 680


def test_one_pixel():
    image, partner = np.zeros((1, 1, 1, 1), np.float32), np.ones((1, 1, 1, 1), np.float32)
    for iteration in range(40):
        mix = decide(0, iteration, 1, 1)
        mixed = mix_images(image, partner, mix)
        assert mixed[0, 0, 0, 0] == pytest.approx(1 - mix.lam)
