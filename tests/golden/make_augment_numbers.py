"""Write what timm's augmentations compute, one array per case.

    python tests/golden/make_augment_numbers.py

Needs timm 0.3.2 (the version of the official fine-tuning), torch and Pillow, so it runs in an
environment of its own. timm's files are loaded one by one: the package needs torchvision. The
committed file was written by Pillow 12.3.0 and torch 2.13.0.
"""

import importlib.util
import pathlib
import random

import numpy as np
import torch
from PIL import Image

FILE = pathlib.Path(__file__).parent / "augment_numbers.npz"
MEAN = (124, 116, 104)
LEVELS = (0.0, 2.5, 7.3, 9.0, 10.0)
SIGNS = (1, -1)
ERASED = {"square": (32, 32), "flat": (6, 40), "tiny": (2, 2)}
CUT = ((224, 224), (32, 128), (7, 5), (1, 1))
MIXED = (6, 3, 9, 8)


def load(name):
    folder = importlib.util.find_spec("timm").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location(name, f"{folder}/data/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def images():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)
    ramp = np.linspace(30, 200, 8).astype(np.uint8)[None] + np.arange(5, dtype=np.uint8)[:, None]
    return {"color": noise, "grey": ramp, "pixel": noise[:1, :1], "flat": noise[:2]}


def operations(out):
    """[variant, operation, level, sign, ...] of each image; the variant is ``increasing``."""
    module = load("auto_augment")
    sets = (module._RAND_TRANSFORMS, module._RAND_INCREASING_TRANSFORMS)
    for image_name, pixels in images().items():
        hparams = dict(
            translate_const=100,
            img_mean=MEAN if pixels.ndim == 3 else MEAN[0],
            interpolation=Image.BICUBIC,
        )
        results = []
        for name in [name for names in sets for name in names]:
            for level in LEVELS:
                operation = module.AugmentOp(name, prob=1.0, magnitude=level, hparams=hparams)
                for sign in SIGNS:
                    module.random.random = lambda sign=sign: 0.0 if sign > 0 else 1.0
                    results.append(np.asarray(operation(Image.fromarray(pixels))))
        shape = (2, len(sets[0]), len(LEVELS), len(SIGNS), *pixels.shape)
        out[f"image/{image_name}"] = pixels
        out[f"operations/{image_name}"] = np.stack(results).reshape(shape)


def erasing(out):
    """[seed, (top, left, bottom, right)] of rectangles, zeros where nothing is erased."""
    erase = load("random_erasing").RandomErasing(0.25, mode="const", max_count=1, device="cpu")
    for name, size in ERASED.items():
        boxes = []
        for seed in range(300):
            random.seed(seed)
            rows, columns = np.nonzero(erase(torch.ones(1, *size)).numpy()[0] == 0)
            if len(rows):
                boxes.append((rows.min(), columns.min(), rows.max() + 1, columns.max() + 1))
            else:
                boxes.append((0, 0, 0, 0))
        out[f"erased/{name}"] = np.array(boxes, np.int16)


def mixing(out):
    module = load("mixup")
    rows = []
    for height, width in CUT:
        for seed in range(50):
            np.random.seed(seed)
            lam = np.random.rand()
            state = np.random.get_state()
            center = np.random.randint(0, height), np.random.randint(0, width)
            np.random.set_state(state)
            (top, bottom, left, right), left_over = module.cutmix_bbox_and_lam(
                (height, width), lam, correct_lam=True
            )
            rows.append((height, width, lam, *center, top, left, bottom, right, left_over))
    out["cutmix"] = np.array(rows, np.float64)

    rng = np.random.default_rng(1)
    out["mix/images"] = rng.normal(size=MIXED).astype(np.float32)
    out["mix/labels"] = np.array([3, 0, 4, 4, 1, 2])
    boxes = []
    cutmix = module.cutmix_bbox_and_lam
    module.cutmix_bbox_and_lam = lambda *a, **k: boxes.append(cutmix(*a, **k)) or boxes[-1]
    for name, switch in (("mixup", 0.0), ("cutmix", 1.0)):
        np.random.seed(3)
        mix = module.Mixup(0.8, 1.0, switch_prob=switch, label_smoothing=0.1, num_classes=5)
        batch = torch.from_numpy(out["mix/images"].copy())
        lam = mix._mix_batch(batch)
        target = module.mixup_target(torch.from_numpy(out["mix/labels"]), 5, lam, 0.1, "cpu")
        out[f"{name}/lam"] = np.float64(lam)
        out[f"{name}/images"], out[f"{name}/targets"] = batch.numpy(), target.numpy()
    top, bottom, left, right = boxes[0][0]
    out["cutmix/box"] = np.array((top, left, bottom, right))


if __name__ == "__main__":
    numbers = {}
    erasing(numbers)
    mixing(numbers)
    operations(numbers)  # last: it replaces random.random
    np.savez_compressed(FILE, **numbers)
