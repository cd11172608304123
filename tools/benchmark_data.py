"""Measure what one core makes of JPEG files, stage by stage.

    python tools/benchmark_data.py [--size 224] [--jpeg 500x375] [--images 200]

The files are drawn here: smooth shapes and noise, quality 90, about ImageNet's bytes per pixel.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from libai_ext.startup import start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=224, help="side of the crops")
    parser.add_argument("--jpeg", default="500x375", help="width x height of the files")
    parser.add_argument("--images", type=int, default=200)
    args = parser.parse_args()
    start()
    with tempfile.TemporaryDirectory() as folder:
        width, height = map(int, args.jpeg.split("x"))
        size = write_images(Path(folder), args.images, width, height)
        print(f"{args.images} JPEGs of {args.jpeg}, {size / 1024:.0f} KiB each, to {args.size}")
        report(measure(folder, args.size))


def write_images(folder: Path, count: int, width: int, height: int) -> float:
    """Mean size of the written files in bytes."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width] / 64
    sizes = []
    for number in range(count):
        phase = rng.uniform(0, 6, (3, 2))
        waves = [
            np.sin(x * (1 + c) + a) * np.cos(y * (2 - c / 2) + b) for c, (a, b) in enumerate(phase)
        ]
        picture = 128 + 80 * np.stack(waves, -1) + rng.normal(0, 9, (height, width, 3))
        path = folder / f"{number:04d}.jpg"
        Image.fromarray(np.uint8(np.clip(picture, 0, 255))).save(path, quality=90)
        sizes.append(path.stat().st_size)
    return statistics.mean(sizes)


def measure(folder: str, size: int) -> dict:
    """Milliseconds of each stage per image, one process; the median over the images."""
    # OneFlow must be up before anything that imports it.
    from libai_ext.data.dataset import collate
    from libai_ext.data.image_folder import ImageFolder
    from libai_ext.data.transforms import RandomHorizontalFlip, RandomResizedCrop, ToArray

    source = ImageFolder([folder])
    crop, flip = RandomResizedCrop((size, size)), RandomHorizontalFlip()
    to_array = ToArray([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    times = {"decode": [], "crop and resize": [], "flip": [], "to float array": []}
    batch = []
    for index in range(len(source)):
        rng = np.random.default_rng([0, 0, index])
        marks = [time.perf_counter()]
        value = source[index][0]
        marks.append(time.perf_counter())
        for transform in (crop, flip, to_array):
            value = transform(value, rng)
            marks.append(time.perf_counter())
        for stage, begin, end in zip(times, marks, marks[1:]):
            times[stage].append(1000 * (end - begin))
        batch.append({"images": value})
    medians = {stage: statistics.median(values) for stage, values in times.items()}
    batch = batch[:64]
    stacking = []
    for _ in range(9):
        begin = time.perf_counter()
        collate(batch)
        stacking.append(1000 * (time.perf_counter() - begin) / len(batch))
    medians["stack into a batch"] = statistics.median(stacking)
    return medians


def report(medians: dict) -> None:
    total = sum(medians.values())
    for stage, ms in medians.items():
        print(f"  {stage:20s} {ms:6.2f} ms  {100 * ms / total:3.0f} %")
    print(f"  {'all':20s} {total:6.2f} ms  = {1000 / total:.0f} images/s per core")


if __name__ == "__main__":
    main()
