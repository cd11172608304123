"""Maskings: how many patches they remove, in which shapes, and that they follow the sample."""

from __future__ import annotations

import numpy as np
import oneflow as flow
import pytest
from omegaconf import OmegaConf
from scipy import ndimage

from libai_ext.data.sampler import SampleKey
from libai_ext.errors import ConfigError, DataError
from projects.MAE.modeling.masking import (
    BlockwiseMasking,
    Masking,
    MaskingNoise,
    num_kept,
    random_masking,
)
from projects.MAE.run import resolve
from projects.MAE.tasks import Pretraining, fill_fields


def masks(masking, count):
    """bool [N, rows, columns], and the noise behind them."""
    noise = [masking(np.random.default_rng([0, i]), SampleKey(0, i)) for i in range(count)]
    noise = np.stack(noise)
    mask = random_masking(flow.from_numpy(noise), masking.num_kept)[2].numpy()
    return mask.astype(bool).reshape(count, *masking.grid), noise


@pytest.mark.parametrize(
    "grid, ratio, least",
    [((14, 14), 0.75, 16), ((14, 14), 0.4, 16), ((8, 32), 0.6, 16), ((2, 4), 0.75, 2)],
)
def test_blocks_remove_the_exact_number(grid, ratio, least):
    masking = BlockwiseMasking(grid, num_kept(grid[0] * grid[1], ratio), min_patches=least)
    found, noise = masks(masking, 200)
    assert noise.dtype == np.float32
    assert (found.sum(axis=(1, 2)) == grid[0] * grid[1] - masking.num_kept).all()
    np.testing.assert_array_equal(found.reshape(200, -1), noise >= 1)
    # No patch is removed always or never.
    assert found.any(axis=0).all() and not found.all(axis=0).any()


def test_blocks_that_are_larger_than_all_that_is_removed():
    with pytest.raises(ConfigError, match="min_patches=16 patches, model.mask_ratio removes 6:"):
        BlockwiseMasking((2, 4), 2)


def test_blocks_are_blocks():
    """At 40 % of 14 x 14, BEiT's setting, far fewer pieces than of as many random patches; and a
    first block has from 16 patches on, and sides whose ratio is from 0.3 to 1 / 0.3."""
    masking = BlockwiseMasking((14, 14), num_kept(196, 0.4))
    pieces = [ndimage.label(mask)[1] for mask in masks(masking, 300)[0]]
    random = np.stack([np.random.default_rng(i).permutation(196) < 79 for i in range(300)])
    scattered = [ndimage.label(mask)[1] for mask in random.reshape(-1, 14, 14)]
    assert np.mean(pieces) < 3 and np.mean(scattered) > 12
    for seed in range(300):
        block = masking._block(np.random.default_rng(seed), 79)
        height, width = block.any(axis=1).sum(), block.any(axis=0).sum()
        assert height * width == block.sum() >= 12  # 16, sides rounded
        assert 0.2 < height / width < 5
    sizes = [masking._block(np.random.default_rng(seed), 79).sum() for seed in range(300)]
    assert max(sizes) > 60 and np.mean(sizes) == pytest.approx((16 + 79) / 2, rel=0.1)


def test_a_mask_follows_the_sample():
    masking = BlockwiseMasking((14, 14), 49)
    first, again = masks(masking, 3), masks(masking, 3)
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[0][0], first[0][1])


class Given(Masking):
    """Removes what it is told, by the sample's number."""

    given = [
        np.arange(8).reshape(2, 4) >= 2,
        np.ones((2, 4), bool),
        np.ones(6, bool),
        np.ones((2, 4)),
    ]

    def removed(self, rng, key):
        return self.given[key.index]


def test_masks_of_the_users_own():
    noise = Given((2, 4), 2)(np.random.default_rng(0), SampleKey(0, 0))
    np.testing.assert_array_equal(noise >= 1, np.arange(8) >= 2)
    for index, found in ((1, r"bool \[2, 4\] with 8"), (2, r"bool \[6\] with 6"), (3, "float64")):
        with pytest.raises(
            DataError, match=f"Given must remove 6 of 2 x 4 .* {index} it gave {found}"
        ):
            Given((2, 4), 2)(np.random.default_rng(0), SampleKey(0, index))


def test_fields_are_told_what_they_take():
    nodes = [{"_target_": MaskingNoise, "num_patches": None}, {"_target_": BlockwiseMasking}]
    dataset = OmegaConf.create({"fields": nodes}, flags={"allow_objects": True})
    fill_fields(dataset, dict(num_patches=196, grid=[14, 14], num_kept=49))
    assert dataset.fields[0].num_patches == 196 and "grid" not in dataset.fields[0]
    assert list(dataset.fields[1].grid) == [14, 14] and dataset.fields[1].num_kept == 49
    assert "num_patches" not in dataset.fields[1]


def test_a_target_of_other_images_is_refused():
    class Model:
        class target:
            data = {"mode": "L", "mean": [0.5], "std": [0.25]}

    cfg = resolve("mae_digits", [])
    with pytest.raises(ConfigError, match=r"data.std \[0.5\], the file has \[0.25\]: set"):
        Pretraining().check_model(Model, cfg)
    Pretraining().check_model(Model, resolve("mae_digits", ["data.std=[0.25]"]))
