from __future__ import annotations

import pickle
import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from libai_ext.data.auto_augment import RandAugment, operations
from libai_ext.data.mixup import Mixer
from libai_ext.data.random_erasing import RandomErasing
from libai_ext.data.transforms import EvalCrop, RandomHorizontalFlip, RandomResizedCrop, Resize
from libai_ext.errors import ConfigError

GOLDEN = np.load(Path(__file__).resolve().parents[1] / "golden" / "augment_numbers.npz")
LEVELS = (0.0, 2.5, 7.3, 9.0, 10.0)
IMAGENET = (0.485, 0.456, 0.406)
# 99.99 % quantiles of chi-square by degrees of freedom.
CHI_SQUARE = {1: 15.1, 2: 18.4, 14: 42.6}


def chi_square(counts, shares=None) -> float:
    counts = np.asarray(counts, float)
    shares = np.full(len(counts), 1 / len(counts)) if shares is None else np.array(shares)
    expected = counts.sum() * shares
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize(
    "transform, argument, wrong",
    [
        (RandomErasing, "probability", (25, -0.1, float("nan"), "0.1", True, None)),
        (RandomErasing, "area", ((0.3, 0.1), (0.1, 1.1), 0.2)),
        (RandomErasing, "aspect", (0, -1, 3)),
        (RandomHorizontalFlip, "p", (50, -1)),
        (partial(RandomResizedCrop, (8, 8)), "scale", (0.2, (0, 1), (0.2, 1.5), (1, 0.2), (0.2,))),
        (partial(RandomResizedCrop, (8, 8)), "ratio", ((4 / 3, 3 / 4), (0, 1))),
        (partial(RandomResizedCrop, (8, 8)), "interpolation", ("cubic",)),
        (partial(Resize, 8), "interpolation", ("cubic",)),
        (partial(EvalCrop, (8, 8)), "interpolation", ("cubic",)),
        (partial(RandAugment, IMAGENET), "magnitude", (11, -1)),
        (partial(RandAugment, IMAGENET), "magnitude_std", (-0.5,)),
        (partial(RandAugment, IMAGENET), "num_ops", (-1, 1.5)),
        (partial(RandAugment, IMAGENET), "probability", (50,)),
        (partial(RandAugment, IMAGENET), "interpolation", ("cubic",)),
        (partial(Mixer, 5), "smoothing", (1.5, -0.1)),
        (partial(Mixer, 5), "mixup_alpha", (-0.8,)),
        (partial(Mixer, 5), "cutmix_alpha", (-1, float("inf"))),
        (partial(Mixer, 5), "probability", (100,)),
        (partial(Mixer, 5), "switch_probability", (50,)),
    ],
)
def test_arguments_out_of_range_are_named(transform, argument, wrong):
    """As percent, or as another program counts them."""
    name = getattr(transform, "func", transform).__name__
    for value in wrong:
        with pytest.raises(ConfigError, match=f"^{name}: {argument} must be .*, not ") as caught:
            transform(**{argument: value})
        assert str(caught.value).endswith(f", not {value!r}")


@pytest.mark.parametrize("increasing", [False, True])
@pytest.mark.parametrize("name", ["color", "grey", "pixel", "flat"])
def test_operations_are_those_of_timm(name, increasing):
    pixels = GOLDEN[f"image/{name}"]
    expected = GOLDEN[f"operations/{name}"][int(increasing)]
    augment = RandAugment(IMAGENET if pixels.ndim == 3 else IMAGENET[:1], increasing=increasing)
    assert len(augment.operations) == len(expected) == 15
    for operation, by_level in zip(augment.operations, expected):
        for level, by_sign in zip(LEVELS, by_level):
            for sign, result in zip((1, -1), by_sign):
                argument = operation.argument(level, sign)
                got = operation.apply(Image.fromarray(pixels), argument, augment.paint)
                np.testing.assert_array_equal(got, result, f"{operation.name} {level} {sign}")


def test_arguments_at_the_recipes_level():
    arguments = {o.name: (o.argument(9.0, 1), o.argument(9.0, -1)) for o in operations()}
    assert arguments["Rotate"] == (27, -27)
    assert arguments["Posterize"] == (1, 1)
    assert arguments["Solarize"] == (26, 26)
    assert arguments["SolarizeAdd"] == (99, 99)
    assert arguments["Color"] == pytest.approx((1.81, 0.19))
    assert arguments["ShearX"] == pytest.approx((0.27, -0.27))
    assert arguments["TranslateY"] == pytest.approx((0.405, -0.405))
    assert RandAugment(IMAGENET).paint.fillcolor == (124, 116, 104)


def test_draws_follow_the_recipe():
    augment, rng = RandAugment(IMAGENET), np.random.default_rng(0)
    draws = [augment.draw(rng) for _ in range(20_000)]
    lengths = np.bincount([len(drawn) for drawn in draws], minlength=3)
    assert chi_square(lengths, [0.25, 0.5, 0.25]) < CHI_SQUARE[2]
    names = [operation.name for drawn in draws for operation, _ in drawn]
    order = [operation.name for operation in augment.operations]
    assert chi_square([names.count(name) for name in order]) < CHI_SQUARE[14]
    # With replacement: one operation twice in a 15th of the pairs.
    pairs = [drawn for drawn in draws if len(drawn) == 2]
    twice = sum(one[0] is other[0] for one, other in pairs)
    assert chi_square([twice, len(pairs) - twice], [1 / 15, 14 / 15]) < CHI_SQUARE[1]

    degrees = np.array([a for drawn in draws for o, a in drawn if o.name == "Rotate"])
    positive = int((degrees > 0).sum())
    assert chi_square([positive, len(degrees) - positive]) < CHI_SQUARE[1]
    levels = abs(degrees) / 3
    # N(9, 0.5) cut at 10, which 2.3 % exceed.
    quantiles = np.quantile(levels, [0.025, 0.25, 0.5, 0.75])
    assert quantiles == pytest.approx([8.02, 8.663, 9, 9.337], abs=0.08)
    assert levels.max() == 10 and 0.008 < (levels == 10).mean() < 0.04


def test_a_fixed_magnitude_has_no_noise():
    augment = RandAugment(IMAGENET, magnitude=5, magnitude_std=0, num_ops=3, probability=1.0)
    draws = [augment.draw(np.random.default_rng(seed)) for seed in range(200)]
    assert {len(drawn) for drawn in draws} == {3}
    assert {a for drawn in draws for o, a in drawn if o.name == "Rotate"} == {15, -15}


@pytest.mark.parametrize("size, mode", [((1, 1), "RGB"), ((1, 1), "L"), ((31, 7), "L")])
def test_augmented_images_keep_size_and_mode_and_follow_the_seed(size, mode):
    mean = IMAGENET if mode == "RGB" else [0.5]
    augment = RandAugment(mean, probability=1.0)
    image = Image.effect_noise(size, 80).convert(mode)
    for seed in range(60):
        one, again = (augment(image, np.random.default_rng(seed)) for _ in range(2))
        assert (one.size, one.mode) == (size, mode)
        np.testing.assert_array_equal(one, again)


def test_transforms_can_be_sent_to_workers():
    """Workers that are spawned, not forked, get them pickled."""
    augment = pickle.loads(pickle.dumps(RandAugment(IMAGENET, probability=1.0)))
    image = Image.effect_noise((16, 16), 80).convert("RGB")
    for seed in range(20):
        expected = RandAugment(IMAGENET, probability=1.0)(image, np.random.default_rng(seed))
        np.testing.assert_array_equal(augment(image, np.random.default_rng(seed)), expected)


class PythonRandom:
    """Python's random numbers behind NumPy's names: what timm draws from a seed."""

    def __init__(self, seed):
        self.source = random.Random(seed)
        self.random = self.source.random
        self.uniform = self.source.uniform

    def integers(self, low, high):
        return self.source.randint(low, high - 1)

    def standard_normal(self, shape, dtype):
        return np.zeros(shape, dtype)


@pytest.mark.parametrize("name, size", [("square", (32, 32)), ("flat", (6, 40)), ("tiny", (2, 2))])
def test_erased_boxes_are_those_of_timm(name, size):
    erase = RandomErasing(0.25)
    for seed, (top, left, bottom, right) in enumerate(GOLDEN[f"erased/{name}"]):
        expected = np.ones((1, *size), np.float32)
        expected[:, top:bottom, left:right] = 0
        array = np.ones((1, *size), np.float32)
        np.testing.assert_array_equal(erase(array, PythonRandom(seed)), expected, f"seed {seed}")
        assert array.all()


def test_erasing_fills_with_noise_of_each_pixel():
    erase, rng = RandomErasing(0.25), np.random.default_rng(0)
    array = np.full((3, 24, 36), 100, np.float32)
    erased = [erase(array, rng) for _ in range(4000)]
    changed = [out for out in erased if out is not array]
    assert chi_square([len(changed), 4000 - len(changed)], [0.25, 0.75]) < CHI_SQUARE[1]
    noise = np.concatenate([out[out != 100] for out in changed])
    assert noise.dtype == np.float32
    assert (noise.mean(), noise.std()) == pytest.approx((0, 1), abs=0.01)
    shares = np.array([(out[0] != 100).mean() for out in changed])
    assert 0.01 < shares.min() < 0.03 and 0.32 < shares.max() < 0.35
    one = changed[0]
    inside = one[:, (one[0] != 100).any(1)][:, :, (one[0] != 100).any(0)]
    assert np.unique(inside).size == inside.size


def test_an_image_too_small_to_erase_is_kept():
    array = np.ones((3, 1, 1), np.float32)
    for seed in range(100):
        assert RandomErasing(1.0)(array, np.random.default_rng(seed)).tolist() == array.tolist()


def place_image(width, height):
    """Each pixel tells its place: red is the column, green the row."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.uint8(np.stack([x, y, 0 * x], -1)))


@pytest.mark.parametrize(
    "size, image, resized, box",
    [
        ((224, 224), (500, 375), (341, 256), (58, 16)),  # round(58.5) is even
        ((224, 224), (49, 60), (256, 313), (16, 44)),
        ((384, 384), (500, 375), (512, 384), (64, 0)),
        ((32, 32), (8, 8), (36, 36), (2, 2)),
        # A square is squeezed as a whole; a line of the input's proportions keeps its own.
        ((32, 128), (100, 100), (146, 36), (9, 2)),
        ((32, 128), (400, 100), (146, 36), (9, 2)),
        ((32, 128), (200, 100), (146, 36), (9, 2)),
        # Wider than the input: its height, in its proportions. Taller than wide: a square of it.
        ((32, 128), (60, 90), (146, 54), (9, 11)),
        ((128, 32), (300, 200), (54, 146), (11, 9)),
        ((64, 64), (500, 375), (97, 73), (16, 4)),
        ((64, 48), (48, 64), (54, 73), (3, 4)),
        ((48, 320), (640, 96), (320, 48), (0, 0)),
        ((32, 128), (1000, 10), (3600, 36), (1736, 2)),
        ((8, 8), (1, 1), (9, 9), (0, 0)),
    ],
)
def test_evaluation_crop(size, image, resized, box):
    image = place_image(*image)
    left, top = box
    whole = image.resize(resized, Image.Resampling.BICUBIC)
    expected = whole.crop((left, top, left + size[1], top + size[0]))
    np.testing.assert_array_equal(EvalCrop(size)(image, None), expected)


def test_the_shorter_side_gets_the_size_asked_for():
    """49 * (256 / 49) is 255.99999999999997."""
    for width in range(1, 300):
        assert Resize(256)(Image.new("L", (width, 300)), None).size[0] == 256
    assert Resize(256)(Image.new("L", (375, 500)), None).size == (256, 341)
