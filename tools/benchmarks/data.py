"""Measure JPEG loading on one core, by stage and against plain Pillow and NumPy, and the transfer
of batches from a worker process.

    .venv/bin/python tools/benchmarks/data.py [--size 224] [--jpeg 500x375] [--images 200]
    .venv/bin/python tools/benchmarks/data.py --folder PHOTOGRAPHS

The files are generated: smooth shapes and noise, quality 90, about ImageNet's bytes per pixel; or
they are those of a folder.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from plain_pillow import MEAN, STD, plain

from libai_ext.startup import start

TURN = 10  # images that one side processes before the other one
BATCH, BATCHES, PAIRS = 64, 40, 5  # of the transfer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=224, help="side of the crops")
    parser.add_argument("--jpeg", default="500x375", help="width x height of the files")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--folder", help="images in place of generated ones")
    args = parser.parse_args()
    start()
    if args.folder:
        report(measure(args.folder, args.size))
        compare(args.folder, args.size)
        return
    with tempfile.TemporaryDirectory() as folder:
        width, height = map(int, args.jpeg.split("x"))
        size = write_images(Path(folder), args.images, width, height)
        print(f"{args.images} JPEGs of {args.jpeg}, {size / 1024:.0f} KiB each, to {args.size}")
        report(measure(folder, args.size))
        compare(folder, args.size)
    transfer(args.size)


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
    """Milliseconds of CPU time of each stage per image; the median over the images."""
    # OneFlow must be started before any import of it.
    from libai_ext.data.dataset import stack
    from libai_ext.data.image_folder import ImageFolder
    from libai_ext.data.transforms import Compose, RandomHorizontalFlip, RandomResizedCrop, ToArray

    source = ImageFolder([folder])
    to_array = ToArray(MEAN, STD)
    transform = Compose([RandomResizedCrop((size, size)), RandomHorizontalFlip(), to_array])
    times: dict[str, list[float]] = {"decode": [], "crop to float array": []}
    batch = []
    for index in range(len(source)):
        rng = np.random.default_rng([0, 0, index])
        marks = [time.process_time()]
        image = source[index][0]
        marks.append(time.process_time())
        batch.append({"images": transform(image, rng)})
        marks.append(time.process_time())
        for stage, begin, end in zip(times, marks, marks[1:]):
            times[stage].append(1000 * (end - begin))
    medians = {stage: statistics.median(values) for stage, values in times.items()}
    batch = batch[:64]
    stacking = []
    for _ in range(9):
        begin = time.process_time()
        stack(batch)
        stacking.append(1000 * (time.process_time() - begin) / len(batch))
    medians["stack into a batch"] = statistics.median(stacking)
    return medians


def compare(folder: str, size: int) -> None:
    """Compare the CPU time of the same crops by :func:`plain` and by the project, in turns."""
    from libai_ext.data.dataset import KeyedDataset
    from libai_ext.data.sampler import SampleKey
    from libai_ext.data.sources import open_source
    from libai_ext.data.transforms import Compose, RandomHorizontalFlip, RandomResizedCrop, ToArray

    crop = RandomResizedCrop((size, size))
    transform = Compose([crop, RandomHorizontalFlip(), ToArray(MEAN, STD)])
    source: Any = open_source([folder], as_torchvision=True)  # not turned, as there
    exact, reduced = (KeyedDataset(source, transform, reduce_jpegs=on) for on in (False, True))

    def by_plain(index: int) -> np.ndarray:
        rng = np.random.default_rng([0, 0, index, 0])  # the data set's own key
        return plain(source.source.samples[index][0], crop, rng)

    sides = {
        "plain Pillow and NumPy": by_plain,
        "here": lambda index: exact[SampleKey(0, index)]["images"],
        "here, data.reduce_jpegs": lambda index: reduced[SampleKey(0, index)]["images"],
    }
    times, differences = [], []
    for begin in range(0, len(source), TURN):
        indices = range(begin, min(begin + TURN, len(source)))
        results, marks = [], [time.process_time()]
        for side in sides.values():
            results.append([side(index) for index in indices])
            marks.append(time.process_time())
        times.append(np.diff(marks) / len(indices))
        for expected, *others in zip(*results):
            levels = [np.abs(other - expected) * STD[:, None, None] * 255 for other in others]
            differences.append([(0.0, 0.0)] + [(level.mean(), level.max()) for level in levels])
    seconds = np.median(times, axis=0)
    ratios = np.median([turn[0] / turn for turn in times], axis=0)
    means, largest = np.mean(differences, axis=0).T[0], np.max(differences, axis=0).T[1]
    print(f"images/s per core, ratio (medians of {len(times)} turns), difference in levels of 255:")
    for number, name in enumerate(sides):
        print(
            f"  {name:24s} {1 / seconds[number]:5.0f}  {ratios[number]:.2f} x  "
            f"{means[number]:.3f} in the mean, {largest[number]:.3f} at most"
        )


def transfer(size: int) -> None:
    """Transfer ready batches from one worker, by the project's loader and by OneFlow's in turn."""
    from oneflow.utils.data import DataLoader

    from libai_ext.data.dataset import stack, to_instance
    from libai_ext.data.loader import Loader

    image = np.random.default_rng(0).random((3, size, size), np.float32)

    class Ready:
        collate = staticmethod(stack)

        def __getitem__(self, key):
            return {"images": image}

    def rate(batches) -> float:
        next(batches)
        start = time.perf_counter()
        count = sum(1 for _ in itertools.islice(batches, BATCHES - 1))
        return count * BATCH / (time.perf_counter() - start)

    data: Any = Ready()
    keys = [[0] * BATCH] * BATCHES
    rates = []
    for _ in range(PAIRS):
        own = rate(iter(Loader(data, keys, 1)))
        theirs = DataLoader(
            data,
            batch_sampler=keys,
            num_workers=1,
            collate_fn=lambda samples: to_instance(stack(samples)),
        )
        rates.append((own, rate(iter(theirs))))
    own, theirs = np.median(rates, axis=0)
    ratio = np.median([pair[0] / pair[1] for pair in rates])
    print(
        f"transfer from one worker {own:.0f} images/s, by OneFlow's DataLoader {theirs:.0f}: "
        f"{ratio:.1f} x (median of {PAIRS} pairs)"
    )


def report(medians: dict) -> None:
    total = sum(medians.values())
    for stage, ms in medians.items():
        print(f"  {stage:20s} {ms:6.2f} ms  {100 * ms / total:3.0f} %")
    print(f"  {'all':20s} {total:6.2f} ms  = {1000 / total:.0f} images/s per core")


if __name__ == "__main__":
    main()
