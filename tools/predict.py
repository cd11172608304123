"""Predict the classes of images with a fine-tuned model.

    .venv/bin/python tools/predict.py WEIGHTS IMAGES_OR_DATA ... [-o predictions.csv|.jsonl]

WEIGHTS: a run of fine-tuning or probing, or a file of the official code, timm or Hugging Face with
a class head. IMAGES_OR_DATA: image files, and all that data.test can name; folders need no classes.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Iterator

import numpy as np
from tqdm import tqdm

from libai_ext.engine import cli as entry
from libai_ext.errors import ConfigError, DataError
from libai_ext.text import csv_cell, printable
from projects.MAE.encoder_options import add_model_options, load
from projects.MAE.option_types import whole

_BATCH = 32
_SUFFIXES = (".csv", ".jsonl")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("weights", metavar="WEIGHTS")
    parser.add_argument("data", nargs="+", metavar="IMAGES_OR_DATA")
    parser.add_argument("-o", "--output", default="predictions.csv", metavar="FILE")
    parser.add_argument("--top", type=whole(1), default=5, help="classes for each image (5)")
    parser.add_argument("--classes", metavar="FILE", help="their names, where WEIGHTS has none")
    add_model_options(parser)
    return parser.parse_intermixed_args()


def main() -> None:
    args = parse_args()
    if Path(args.output).suffix not in _SUFFIXES:
        raise ConfigError(f"--output {args.output}: the name must end in .csv or .jsonl")
    encoder = load(args)
    # OneFlow must be initialised before anything that imports it.
    from libai_ext.data.sources import open_images
    from libai_ext.files.atomic import atomic_file

    if not encoder.num_classes:
        raise ConfigError(f"{args.weights} has no class head: give the weights of a classifier")
    names = class_names(encoder, args.classes)
    if args.top > len(names):
        raise ConfigError(f"--top {args.top}: the model has {len(names)} classes")
    prepare = encoder.preprocess
    source = open_images(args.data, prepare.mode, prepare.as_torchvision)
    bad: list[str] = []
    labels = source.labels
    with atomic_file(args.output) as temporary:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            write = _csv(file, args.top) if args.output.endswith(".csv") else _json_lines(file)
            for index, shares in predictions(encoder, source, bad):
                best = np.argsort(-shares, kind="stable")[: args.top]
                label = source.classes[labels[index]]
                write(source.name(index), label, [(names[k], float(shares[k])) for k in best])
        if len(bad) == len(source):
            raise DataError(f"none of {len(source):,} images can be read; {bad[0]}")
    for line in bad:
        print(f"warning: {printable(line)}", file=sys.stderr)
    done = len(source) - len(bad)
    print(f"{args.output}: {done:,} images, {len(bad)} unreadable images left out")


def class_names(encoder, file: str | None) -> list[str]:
    """
    Raises:
        ConfigError: the file's names differ from those in the weights, or their number is wrong.
    """
    from libai_ext.data.classes import read_names

    if file is None:
        return list(encoder.classes or map(str, range(encoder.num_classes)))
    names = read_names(file, "--classes")
    if encoder.classes and names != list(encoder.classes):
        raise ConfigError(f"--classes {file}: {encoder.source.path} names its classes otherwise")
    if len(names) != encoder.num_classes:
        raise ConfigError(
            f"--classes {file} has {len(names)} names, {encoder.source.path} has "
            f"{encoder.num_classes} classes"
        )
    return names


def predictions(encoder, source, bad: list[str]) -> Iterator[tuple[int, np.ndarray]]:
    """Number and probabilities [N] of each image that can be read; for each other image, a sentence
    on what is wrong is added to ``bad``."""
    from libai_ext.data.decode import BadImage

    for start in tqdm(range(0, len(source), _BATCH), unit="batch", disable=None):
        images = {}
        for index in range(start, min(start + _BATCH, len(source))):
            try:
                images[index] = encoder.preprocess.of(source[index][0])
            except BadImage as error:
                bad.append(str(error))
        if images:
            yield from zip(images, encoder.predict(list(images.values())))


def _csv(file, top: int):
    writer = csv.writer(file)
    columns = [f"{name}{k}" for k in range(1, top + 1) for name in ("class", "probability")]
    writer.writerow(["image", "label", *columns])

    def write(name: str, label: str, best: list[tuple[str, float]]) -> None:
        cells = [text for one, share in best for text in (csv_cell(one), f"{share:.6g}")]
        writer.writerow([csv_cell(name), csv_cell(label), *cells])

    return write


def _json_lines(file):
    def write(name: str, label: str, best: list[tuple[str, float]]) -> None:
        top = [{"class": one, "probability": round(share, 6)} for one, share in best]
        print(json.dumps({"image": name, "label": label or None, "top": top}), file=file)

    return write


if __name__ == "__main__":
    entry.run(main)
