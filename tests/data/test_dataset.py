from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from PIL import Image

from libai_ext.data.dataset import KeyedDataset, stack, to_instance
from libai_ext.data.image_folder import ImageFolder
from libai_ext.data.loader import Loader
from libai_ext.data.mixup import Mixer
from libai_ext.data.sampler import EvalSampler, GlobalOrder, SampleKey, TrainSampler
from libai_ext.data.transforms import (
    CenterCrop,
    Compose,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
    ToArray,
)
from libai_ext.errors import ConfigError, DataError
from libai_ext.kernels import loader
from projects.MAE.modeling.masking import MaskingNoise


def write(path, value, size=(6, 4), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


@pytest.fixture
def two_roots(tmp_path):
    write(tmp_path / "a/cat/2.png", (10, 20, 30))
    write(tmp_path / "a/cat/deep/1.png", (11, 21, 31))
    write(tmp_path / "a/ant/9.JPG", (12, 22, 32))
    write(tmp_path / "b/dog/0.png", (13, 23, 33))
    (tmp_path / "a/cat/notes.txt").write_text("no image")
    return [str(tmp_path / "a"), str(tmp_path / "b")]


def test_roots_are_read_as_one_sorted_set(two_roots):
    folder = ImageFolder(two_roots)
    assert folder.classes == ["ant", "cat", "dog"]
    names = [path.rsplit("/", 1)[1] for path, _ in folder.samples]
    assert names == ["9.JPG", "2.png", "1.png", "0.png"]
    assert [label for _, label in folder.samples] == [0, 1, 1, 2]
    image, label = folder[1]
    assert (image.getpixel((0, 0)), label) == ((10, 20, 30), 1)
    assert ImageFolder(two_roots, mode="L")[1][0].mode == "L"


def test_a_root_of_images_is_one_class(tmp_path):
    write(tmp_path / "1.png", (1, 2, 3))
    folder = ImageFolder([str(tmp_path)])
    assert (len(folder), folder.samples[0][1]) == (1, 0)


def test_unusable_folders_are_named(tmp_path):
    with pytest.raises(DataError, match="nowhere does not exist"):
        ImageFolder([str(tmp_path / "nowhere")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no image"):
        ImageFolder([str(tmp_path / "empty")])
    with pytest.raises(DataError, match="data.train"):
        ImageFolder([])
    (tmp_path / "empty/broken.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match="cannot read image .*broken.png"):
        ImageFolder([str(tmp_path / "empty")])[0]


def keyed(two_roots, transforms, **keywords):
    to_array = ToArray(mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25])
    transform = Compose([*transforms, to_array])
    return KeyedDataset(ImageFolder(two_roots), transform, **keywords)


def test_values(two_roots):
    sample = keyed(two_roots, [], labels=True)[SampleKey(0, 1)]
    assert sample["images"].shape == (3, 4, 6)
    expected = (np.array([10, 20, 30]) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(sample["images"][:, 0, 0], expected, rtol=1e-6)
    assert sample["labels"] == 1


def test_a_visit_is_determined_by_seed_epoch_and_index(two_roots):
    crop = [RandomResizedCrop((8, 8)), RandomHorizontalFlip()]
    noise = [MaskingNoise(16)]
    data = keyed(two_roots, crop, fields=noise, seed=5)
    one = data[SampleKey(2, 1)]
    again = keyed(two_roots, crop, fields=noise, seed=5)[SampleKey(2, 1)]
    np.testing.assert_array_equal(one["images"], again["images"])
    np.testing.assert_array_equal(one["noise"], again["noise"])
    for key, seed in ((SampleKey(3, 1), 5), (SampleKey(2, 2), 5), (SampleKey(2, 1), 6)):
        other = keyed(two_roots, crop, fields=noise, seed=seed)[key]
        assert not np.array_equal(one["noise"], other["noise"])
    unaugmented = keyed(two_roots, [Resize((8, 8))], fields=noise, seed=5)[SampleKey(2, 1)]
    np.testing.assert_array_equal(one["noise"], unaugmented["noise"])


def test_noise_is_uniform():
    noise = MaskingNoise(200_000)(np.random.default_rng(0), SampleKey(0, 0))
    assert noise.dtype == np.float32
    assert (noise >= 0).all() and (noise < 1).all()
    assert noise.mean() == pytest.approx(0.5, abs=0.003)
    assert noise.var() == pytest.approx(1 / 12, abs=0.002)


def test_a_batch_is_stacked_in_order(two_roots):
    data = keyed(two_roots, [], labels=True)
    batch = to_instance(stack([data[SampleKey(0, i)] for i in (3, 0)]))
    assert list(batch.get_fields()) == ["images", "labels"]
    assert batch.get("images").tensor.shape == (2, 3, 4, 6)
    assert batch.get("labels").tensor.numpy().tolist() == [2, 0]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_is_gone_is_one_line_from_a_worker_too(tmp_path, workers):
    for number in range(4):
        write(tmp_path / f"{number}.png", (1, 2, 3))
    data = keyed([str(tmp_path)], [])
    (tmp_path / "2.png").unlink()
    batches = iter(Loader(data, EvalSampler(4, 2, 0, 1), workers))
    assert next(batches).get("images").tensor.shape == (2, 3, 4, 6)
    with pytest.raises(DataError) as caught:
        next(batches)
    assert str(caught.value) == f"cannot open {tmp_path}/2.png: No such file or directory"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mixer_that_lacks_a_partner_is_one_line_from_a_worker_too(tmp_path, workers):
    for number in range(3):
        write(tmp_path / f"a/{number}.png", (1, 2, 3))
    data = keyed([str(tmp_path)], [], labels=True, mixer=Mixer(1))
    sampler = TrainSampler(GlobalOrder(3, 3, 0), 0, 1)
    with pytest.raises(ConfigError, match="^mixup pairs neighbours: a micro-batch of 3 samples"):
        next(iter(Loader(data, sampler, workers)))


def gradient_image(width=64, height=48):
    """Each pixel tells its place: red is the column, green the row."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.uint8(np.stack([x, y, 0 * x], -1)))


def test_random_resized_crop_boxes():
    crop = RandomResizedCrop((8, 8), scale=(0.2, 1.0))
    rng = np.random.default_rng(0)
    boxes = np.array([crop.box(64, 48, rng) for _ in range(4000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0 and boxes[:, 2].max() == 64 and boxes[:, 3].max() == 48
    share = width * height / (64 * 48)
    assert share.min() > 0.19 and share.max() <= 1
    assert np.quantile(width / height, [0.001, 0.999]) == pytest.approx([0.75, 1.333], abs=0.06)
    # Wide boxes fit a square as often as tall ones.
    square = np.array([crop.box(64, 64, rng) for _ in range(4000)])
    log_ratio = np.log((square[:, 2] - square[:, 0]) / (square[:, 3] - square[:, 1]))
    assert np.median(log_ratio) == pytest.approx(0, abs=0.01)
    # An image that no allowed proportion fits: the whole height, the widest allowed middle.
    assert crop.box(1000, 10, rng) == (493, 0, 506, 10)


@pytest.mark.parametrize(
    "size, once, within", [((500, 375), 0.516, 0.434), ((640, 160), 0.35, 0.19)]
)
def test_mean_area_of_a_crop(size, once, within):
    """The official linear probe draws once and clips; torchvision draws again."""
    rng = np.random.default_rng(0)
    for clip, expected in ((True, once), (False, within)):
        crop = RandomResizedCrop((8, 8), scale=(0.08, 1.0), clip=clip)
        boxes = np.array([crop.box(*size, rng) for _ in range(20_000)])
        assert boxes.min() >= 0 and (boxes[:, 2:] <= size).all()
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / (size[0] * size[1])
        assert area.mean() == pytest.approx(expected, abs=0.005)


def test_crop_resizes_what_it_cropped():
    crop = RandomResizedCrop((48, 64), scale=(1.0, 1.0), ratio=(4 / 3, 4 / 3))
    image = gradient_image()
    np.testing.assert_array_equal(crop(image, np.random.default_rng(0)), image)


def test_flip():
    image, rng = gradient_image(), np.random.default_rng(0)
    mirrored = RandomHorizontalFlip(1.0)(image, rng)
    np.testing.assert_array_equal(mirrored, np.asarray(image)[:, ::-1])
    flip = RandomHorizontalFlip(0.5)
    count = sum(flip(image, rng).getpixel((0, 0))[0] == 63 for _ in range(1000))
    assert 440 < count < 560


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_crop_flip_and_conversion_in_one_pass_give_the_same_bits(mode, monkeypatch):
    rng = np.random.default_rng(0)
    channels = len(mode) // 3 * 2 + 1
    to_array = ToArray([0.485, 0.456, 0.406][:channels], [0.229, 0.224, 0.225][:channels])
    steps = [RandomResizedCrop((37, 53)), RandomHorizontalFlip(), to_array]
    fused = Compose(steps)
    for number in range(60):
        width, height = map(int, rng.integers(1, 300, 2))
        noise = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)
        draws = [np.random.default_rng(number) for _ in range(3)]
        expected = noise
        for step in steps:
            expected = step(expected, draws[0])
        one = fused(noise, draws[1])
        with monkeypatch.context() as without:
            without.setattr(loader, "_library", None)
            other = fused(noise, draws[2])
        assert one.dtype == np.float32 and one.shape == (channels, 37, 53)
        np.testing.assert_array_equal(one, expected)
        np.testing.assert_array_equal(other, expected)
        assert len({rng.random() for rng in draws}) == 1
    with pytest.raises(ValueError, match="data.mean and data.std have"):
        fused(noise.convert("L" if mode == "RGB" else "RGB"), rng)


def test_only_what_one_pass_can_do_is_joined():
    def count(*steps):
        return len(Compose(steps)._steps)

    crop, flip, to_array = RandomResizedCrop((8, 8)), RandomHorizontalFlip(), ToArray([0.5], [0.5])
    assert count(crop, flip, to_array, Resize(4)) == count(Resize(4), crop, flip, to_array) == 2
    assert count(crop, flip, Resize(4), to_array) == 4
    assert count(RandomResizedCrop((8, 8), interpolation="bilinear"), flip, to_array) == 3


def test_resize_and_center_crop():
    image, rng = gradient_image(), None
    assert Resize((10, 20))(image, rng).size == (20, 10)
    assert Resize(24)(image, rng).size == (32, 24)
    middle = CenterCrop((4, 8))(image, rng)
    np.testing.assert_array_equal(middle, np.asarray(image)[22:26, 28:36])


def test_channels_must_match_the_statistics():
    with pytest.raises(ValueError, match="3 channels, data.mean and data.std have 1"):
        ToArray([0.5], [0.5])(gradient_image(), None)


def test_jpegs_are_reduced_as_far_as_the_crop_allows(tmp_path):
    """Of 960 x 640: all of it at 1/4 or 1/2, half of the area (679 x 453) at 1/2 or not at all."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (20, 30, 3), np.uint8)
    picture = Image.fromarray(blocks).resize((960, 640), Image.Resampling.BICUBIC)
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.save(tmp_path / "0.jpg", quality=95)
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "1.jpg", quality=95, exif=turned)
    source = ImageFolder([str(tmp_path)])
    to_array = ToArray([0.0] * 3, [1.0] * 3)

    def images(area, size, reduce_jpegs):
        crop = RandomResizedCrop(size, scale=(area, area), ratio=(1.5, 1.5))
        data = KeyedDataset(source, Compose([crop, to_array]), reduce_jpegs=reduce_jpegs)
        return [data[SampleKey(0, index)]["images"] for index in (0, 1)]

    reduced = np.asarray(picture.reduce(4), np.float32).transpose(2, 0, 1) / 255
    for image in images(1.0, (160, 240), True):  # no resize is left
        assert np.abs(image - reduced).mean() < 0.01
    for area, size in ((1.0, (161, 240)), (0.5, (220, 330)), (0.5, (300, 500))):
        for ours, full in zip(images(area, size, True), images(area, size, False)):
            assert np.array_equal(ours, full) == (size == (300, 500))
            assert np.abs(ours - full).mean() < 0.02
    with pytest.raises(ConfigError, match="data.reduce_jpegs needs a RandomResizedCrop"):
        KeyedDataset(source, Compose([to_array]), reduce_jpegs=True)


def test_the_reduction_is_the_largest_that_keeps_the_size_of_the_crop():
    crop = RandomResizedCrop((224, 224), scale=(0.2, 1.0))
    found = set()
    for seed in range(50):
        make = partial(np.random.default_rng, seed)
        by = crop.reduction(2000, 1601, make)
        fitting = [1]
        for candidate in (2, 4, 8):
            size = -(-2000 // candidate), -(-1601 // candidate)
            left, top, right, bottom = crop.box(*size, make())
            if min(right - left, bottom - top) >= 224:
                fitting.append(candidate)
        assert by == max(fitting)
        found.add(by)
    assert found == {2, 4}
    assert crop.reduction(400, 300, make) == 1
