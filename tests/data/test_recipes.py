"""The recipes that name a data set: what they derive, and that they run on made files."""

from __future__ import annotations

import json
import re

import event_pictures
import numpy as np
import pytest
from image_files import bad_files, encode
from libai.config import instantiate
from made_sets import cifar_pixels, write_cifar10, write_lmdb, write_stl10
from PIL import Image, ImageDraw

from libai_ext.config.lazy_config import fresh
from libai_ext.data.sampler import GlobalOrder, SampleKey
from libai_ext.engine.derive import derive_schedule
from projects.MAE.run import resolve

CONFIGS = "projects/MAE/configs"
TEXT_LINES = f"{CONFIGS}/mae_text_lines.py"
SMALL = ["model.depth=1", "model.embed_dim=48", "model.num_heads=4"]
SMALL += ["model.decoder_depth=1", "model.decoder_embed_dim=48", "model.decoder_num_heads=4"]


@pytest.mark.parametrize(
    "name, samples, size, patches, batch, rate, iterations, warmup",
    [
        ("mae_text_lines", 10_000_000, [32, 128], 256, 1024, 6e-4, 195_313, 19_532),
        ("mae_cifar10", 50_000, [32, 32], 64, 4096, 2.4e-3, 9_766, 489),
        ("mae_cifar10_small", 50_000, [32, 32], 64, 256, 1.5e-3, 3_907, 391),
        ("mae_cifar100", 50_000, [32, 32], 64, 4096, 2.4e-3, 9_766, 489),
        ("mae_stl10", 105_000, [96, 96], 144, 4096, 2.4e-3, 20_508, 1_026),
    ],
)
def test_derived_numbers(name, samples, size, patches, batch, rate, iterations, warmup):
    cfg = resolve(f"{CONFIGS}/{name}.py", [])
    train = cfg.train
    derive_schedule(cfg, GlobalOrder(samples, train.global_batch_size, 0, train.epoch_remainder))
    assert list(cfg.model.img_size) == size
    assert cfg.dataloader.train.dataset.fields[0].num_patches == patches
    assert (train.global_batch_size, cfg.optim.lr) == (batch, pytest.approx(rate))
    assert (train.train_iter, train.warmup_iter) == (iterations, warmup)
    assert (cfg.optim.params.weight_decay, list(cfg.optim.betas)) == (0.05, [0.9, 0.95])


def test_union14m_recipe(tmp_path):
    cfg = resolve(TEXT_LINES, ["model.arch=mae_vit_base_patch4"])
    assert (cfg.model.embed_dim, cfg.model.patch_size, cfg.model.norm_pix_loss) == (768, 4, True)
    # Resized as a whole, to [-1, 1], in training and evaluation alike.
    line = text_line(0)
    (tmp_path / "0.png").write_bytes(encode(line))
    resized = line.resize((128, 32), Image.Resampling.BICUBIC)
    expected = np.asarray(resized, np.float64).transpose(2, 0, 1) / 127.5 - 1
    for split in ("train", "test"):
        node = fresh(resolve(TEXT_LINES, [f"data.{split}=[{tmp_path}]"]).dataloader[split].dataset)
        images = instantiate(node)[SampleKey(3, 0)]["images"]
        np.testing.assert_allclose(images, expected, atol=1e-6)


def test_cifar_images_are_evaluated_as_they_are(tmp_path):
    write_cifar10(tmp_path)
    cfg = resolve(f"{CONFIGS}/mae_cifar10.py", [f"data.test=['cifar10:test:{tmp_path}']"])
    sample = instantiate(fresh(cfg.dataloader.test.dataset))[SampleKey(0, 1)]
    pixels = cifar_pixels(0, 4)[1].reshape(3, 32, 32) / 255
    mean, std = (np.array(cfg.data[key])[:, None, None] for key in ("mean", "std"))
    np.testing.assert_allclose(sample["images"], (pixels - mean) / std, atol=1e-6)


def evaluated(tmp_path, recipe, width, height, *options):
    """What evaluation shows of an image whose red is the column in per cent, its green the row."""
    x, y = np.meshgrid(np.linspace(0, 100, width), np.linspace(0, 100, height))
    image = Image.fromarray(np.uint8(np.stack([x, y, 0 * x], -1)))
    image.save(tmp_path / "0.png")
    opts = [f"data.test=[{tmp_path}]", "data.mean=[0,0,0]", "data.std=[1,1,1]", *options]
    dataset = instantiate(fresh(resolve(recipe, opts).dataloader.test.dataset))
    images = dataset[SampleKey(0, 0)]["images"] * 255
    return image, images.transpose(1, 2, 0)


@pytest.mark.parametrize("name", ["mae_pretraining", "mae_finetune", "mae_linprobe"])
def test_evaluation_at_224_is_the_published_one(tmp_path, name):
    """Resize the shorter side to 256, bicubic, and take the middle 224 x 224."""
    for width, height, resized in ((500, 375, (341, 256)), (100, 160, (256, 409))):
        image, found = evaluated(tmp_path, f"{CONFIGS}/{name}.py", width, height)
        whole = image.resize(resized, Image.Resampling.BICUBIC)
        left, top = (round((side - 224) / 2) for side in resized)
        expected = whole.crop((left, top, left + 224, top + 224))
        np.testing.assert_allclose(found, np.asarray(expected), atol=1e-3)


@pytest.mark.parametrize(
    "size, image, shown",
    [
        # Of a photo 4:3 the middle, seven eighths of its height, whatever the input.
        ([64, 64], (400, 300), (17, 83, 6, 94)),
        ([32, 32], (40, 30), (17, 83, 6, 94)),
        ([224, 224], (64, 64), (6, 94, 6, 94)),
        ([384, 384], (400, 300), (12.5, 87.5, 0, 100)),
        # Of lines, of squares squeezed into one, and of what is wider.
        ([32, 128], (512, 128), (6, 94, 6, 94)),
        ([32, 128], (64, 64), (6, 94, 6, 94)),
        ([32, 128], (800, 100), (28, 72, 6, 94)),
        ([96, 48], (300, 300), (6, 94, 6, 94)),
    ],
)
@pytest.mark.parametrize("name", ["mae_pretraining", "mae_finetune"])
def test_evaluation_shows_the_middle_at_any_size(tmp_path, name, size, image, shown):
    """First and last column, first and last row, in per cent of the image."""
    _, found = evaluated(tmp_path, f"{CONFIGS}/{name}.py", *image, f"model.img_size={size}")
    assert list(found.shape[:2]) == size
    edges = (found[:, 0, 0], found[:, -1, 0], found[0, :, 1], found[-1, :, 1])
    assert [edge.mean() for edge in edges] == pytest.approx(shown, abs=2.5)


@pytest.mark.parametrize("name", ["mae_text_lines", "mae_cifar10", "mae_cifar100", "mae_stl10"])
def test_recipes_of_whole_images_show_them_whole(tmp_path, name):
    image, found = evaluated(tmp_path, f"{CONFIGS}/{name}.py", 300, 100)
    expected = image.resize(found.shape[1::-1], Image.Resampling.BICUBIC)
    np.testing.assert_allclose(found, np.asarray(expected), atol=1e-3)


def text_line(seed):
    """A few drawn words, of any length and colours."""
    rng = np.random.default_rng(seed)
    letters = list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
    words = ["".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(rng.integers(1, 4))]
    text = " ".join(words)
    image = Image.new("RGB", (8 * len(text) + 8, 20), tuple(map(int, rng.integers(150, 256, 3))))
    ImageDraw.Draw(image).text((4, 4), text, fill=tuple(map(int, rng.integers(0, 100, 3))))
    return image


@pytest.fixture(scope="module")
def text_lines(tmp_path_factory):
    """2,000 lines: a folder of half of them, 5 % of its files bad, and an LMDB of the others."""
    root = tmp_path_factory.mktemp("lines")
    (root / "folder").mkdir()
    bad = list(bad_files().values())
    for number in range(1000):
        data = bad[number % len(bad)] if number % 20 == 7 else encode(text_line(number), "JPEG")
        (root / f"folder/{number:04d}.jpg").write_bytes(data)
    write_lmdb(root / "lmdb", [encode(text_line(number)) for number in range(1000, 2000)])
    return [f"{root}/folder", f"{root}/lmdb"]


@pytest.mark.slow
def test_text_lines_from_the_launcher(launch, text_lines, tmp_path):
    folder, lmdb = text_lines
    options = [
        *SMALL,
        f"data.train=[{folder},{lmdb}]",
        f"data.test=[{lmdb}]",
        f"train.output_dir={tmp_path}/run",
        "train.global_batch_size=64",
        "train.test_micro_batch_size=16",
        "dataloader.train.num_workers=2",
    ]
    out = launch.train(TEXT_LINES, 1, "--fast-dev-run", *options, "data.max_bad_share=0.1")
    assert "samples          2,000" in out and "[4/4]" in out
    assert "evaluation on 32 of 1000 samples: loss" in out
    run = tmp_path / "run/fast_dev_run"
    log = (run / "log.txt").read_text()
    skipped = [line for line in log.splitlines() if "replaces sample" in line]
    # 256 samples of which 2.5 % are bad, and those that the workers read ahead.
    assert 2 <= len(skipped) <= 20
    assert all(f"cannot read image {folder}/" in line for line in skipped)
    report = re.search(r"bad images: (\d+) of (\d+) samples read \(([\d.]+) %\) were replaced", out)
    bad, read, share = map(float, report.groups())
    # Both workers together; one may have read and skipped more by the time the log was closed.
    assert 2 <= bad <= len(skipped) and 256 <= read <= 256 + 8 * 64
    assert share == pytest.approx(100 * bad / read, abs=0.005)
    losses = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert len(losses) == 4
    drawn = event_pictures.check(run, steps=[4], samples=5)
    assert drawn.shape == (5, 4, 32, 128, 3)

    out = launch.train(TEXT_LINES, 1, "--fast-dev-run", *options, "data.max_bad_share=0", status=2)
    assert "are bad, more than data.max_bad_share=0 allows" in out
    assert out.count("error:") == 1 and "Traceback" not in out


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, root", [("mae_cifar10", "cifar10:train:{}"), ("mae_stl10", "stl10:unlabeled:{}")]
)
def test_small_recipes_from_the_launcher(launch, tmp_path, name, root):
    write_cifar10(tmp_path)
    write_stl10(tmp_path)
    root = root.format(tmp_path)
    out = launch.train(
        f"{CONFIGS}/{name}.py",
        1,
        "--dry-run",
        *SMALL,
        f"data.train=['{root}']",
        "train.global_batch_size=4",
    )
    assert "one step:" in out


@pytest.mark.parametrize(
    "name, arch, epochs, group, rate, decay, drop_path, iterations, warmup",
    [
        ("mae_finetune", "base_patch16", 100, 32, 2e-3, 0.65, 0.1, 125_114, 6_256),
        ("mae_finetune_large", "large_patch16", 50, 32, 4e-3, 0.75, 0.2, 62_557, 6_256),
        ("mae_finetune_huge", "huge_patch14", 50, 16, 4e-3, 0.75, 0.3, 62_557, 6_256),
    ],
)
def test_fine_tuning_recipes(name, arch, epochs, group, rate, decay, drop_path, iterations, warmup):
    cfg = resolve(f"{CONFIGS}/{name}.py", [])
    train = cfg.train
    derive_schedule(cfg, GlobalOrder(1_281_167, train.global_batch_size, 0, "carry"))
    assert (cfg.model.arch, train.train_epoch) == (f"mae_vit_{arch}", epochs)
    assert (train.global_batch_size, cfg.optim.lr) == (1024, pytest.approx(rate))
    assert cfg.dataloader.train.dataset.mixer.group_size == group
    assert (cfg.optim.params.decay, cfg.optim.params.weight_decay) == (decay, 0.05)
    assert (cfg.model.drop_path, cfg.model.pooling) == (drop_path, "mean")
    assert cfg.model.init == "timm"
    assert (train.train_iter, train.warmup_iter) == (iterations, warmup)
    assert (train.scheduler.min_lr, list(cfg.optim.betas)) == (1e-6, [0.9, 0.999])
    assert train.evaluation.eval_period == 1_252
    assert cfg.dataloader.train.dataset.fields[0].depth == cfg.model.depth
    names = [t._target_.__name__ for t in cfg.dataloader.train.dataset.transform.transforms]
    assert names == [
        "RandomResizedCrop",
        "RandomHorizontalFlip",
        "RandAugment",
        "ToArray",
        "RandomErasing",
    ]


def test_linear_probe_recipe():
    cfg = resolve(f"{CONFIGS}/mae_linprobe.py", [])
    derive_schedule(cfg, GlobalOrder(1_281_167, cfg.train.global_batch_size, 0, "carry"))
    assert (cfg.train.global_batch_size, cfg.optim.lr) == (16384, pytest.approx(6.4))
    assert (cfg.train.train_iter, cfg.train.warmup_iter) == (7_038, 782)
    assert (cfg.optim.momentum, cfg.optim.params.weight_decay) == (0.9, 0.0)
    model = cfg.model
    assert (model.pooling, model.n_partial, model.batch_norm, model.head_std) == (
        "cls",
        0,
        True,
        0.01,
    )
    crop = cfg.dataloader.train.dataset.transform.transforms[0]
    assert (list(crop.scale), crop.clip) == ([0.08, 1.0], True)
    assert not cfg.dataloader.train.dataset.fields and cfg.dataloader.train.dataset.mixer is None


@pytest.mark.parametrize(
    "name, samples, size, classes, iterations",
    [
        ("mae_cifar10_finetune", 50_000, [32, 32], 10, 4_883),
        ("mae_cifar100_finetune", 50_000, [32, 32], 100, 4_883),
        ("mae_stl10_finetune", 5_000, [96, 96], 10, 489),
    ],
)
@pytest.mark.parametrize("n_partial", [0, 0.5, 1, None])
def test_four_protocols_on_small_images(name, samples, size, classes, iterations, n_partial):
    value = "null" if n_partial is None else n_partial
    cfg = resolve(f"{CONFIGS}/{name}.py", [f"model.n_partial={value}"])
    derive_schedule(cfg, GlobalOrder(samples, cfg.train.global_batch_size, 0, "carry"))
    assert list(cfg.model.img_size) == size
    assert cfg.model.num_classes == cfg.dataloader.train.dataset.mixer.num_classes == classes
    assert (cfg.train.train_iter, cfg.optim.lr) == (iterations, pytest.approx(2e-3))
    assert (cfg.model.n_partial, cfg.model.init) == (n_partial, "pretraining")
