"""Compute the features of images with the encoder of a run or a weights file, and save them.

    .venv/bin/python tools/features.py WEIGHTS IMAGES_OR_DATA ... -o features.npz

IMAGES_OR_DATA: image files, and everything that data.train can name (folders, LMDBs, tar shards,
labels:FILE:FOLDER, cifar10:test:FOLDER). The file holds `features`, `names` and `labels` (numbers
in `classes`, -1 for an image without a class) of all images that can be read, in their order; and
`unreadable`, what is wrong with the others. Any number of processes gives the same bits. Results
are saved in features.npz.parts: after an interruption, the same command continues.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import subprocess
import sys
import time
from typing import Iterator

import numpy as np
from tqdm import tqdm

from libai_ext import device
from libai_ext.engine import cli as entry
from libai_ext.errors import ConfigError
from libai_ext.kernels.threads import configure_environment
from libai_ext.text import printable
from projects.MAE.encoder_options import add_model_options, load
from projects.MAE.option_types import whole

_LOOK_SECONDS = 0.2


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="features",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("weights", metavar="WEIGHTS")
    parser.add_argument("data", nargs="+", metavar="IMAGES_OR_DATA")
    parser.add_argument("-o", "--output", default="features.npz", metavar="FILE.npz")
    parser.add_argument("--layer", type=int, default=-1, help="block, from 0; the last one: -1")
    parser.add_argument("--pool", choices=("cls", "mean", "tokens"), default="cls")
    parser.add_argument("--no-norm", action="store_true", help="without the model's last norm")
    parser.add_argument(
        "--processes", type=whole(1), default=1, metavar="N", help="on GPUs one for each"
    )
    parser.add_argument("--picture", metavar="FILE.png", help="of the features, coloured by class")
    parser.add_argument(
        "--projection", choices=("pca", "tsne"), default="pca", help="(%(default)s)"
    )
    add_model_options(parser)
    parser.add_argument("--share", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_intermixed_args()


def main() -> None:
    args = parse_args()
    parent = os.getppid()
    with other_processes(args) as others:
        extraction = prepared(args)
        shown = None if args.share == 0 else True  # None: only on a terminal
        with tqdm(total=len(extraction.source), unit="image", disable=shown) as bar:
            for done in extraction.run(args.share, args.processes):
                bar.update(done - bar.n)
                check(others)
                if args.share and os.getppid() != parent:
                    raise SystemExit(1)
            while any(other.poll() is None for other in others):
                time.sleep(_LOOK_SECONDS)
                bar.update(extraction.done() - bar.n)
            check(others)
    if args.share == 0:
        finish(extraction, args)


def prepared(args: argparse.Namespace):
    if args.share:
        logging.disable(logging.WARNING)  # the first process logs them
    encoder = load(args)
    # OneFlow must be initialised before anything that imports it.
    from libai_ext.data.sources import open_images
    from projects.MAE.evaluation.extract import Extraction

    options = dict(layer=args.layer, pool=args.pool, norm=not args.no_norm)
    encoder.check(args.layer, args.pool)
    prepare = encoder.preprocess
    source = open_images(args.data, prepare.mode, prepare.as_torchvision)
    return Extraction(encoder, source, args.output, options)


@contextlib.contextmanager
def other_processes(args: argparse.Namespace) -> Iterator[list[subprocess.Popen]]:
    """Start the same command for the other shares; each process has its own engine."""
    others: list[subprocess.Popen] = []
    if args.share:
        yield others
        return
    configure_environment(args.processes)
    gpus = visible_gpus(args.device)
    if gpus and args.processes > len(gpus):
        raise ConfigError(f"--processes {args.processes}, but {len(gpus)} GPUs: one for each")
    try:
        for share in range(1, args.processes):
            env = dict(os.environ, **({"CUDA_VISIBLE_DEVICES": gpus[share]} if gpus else {}))
            command = [sys.executable, *sys.argv, "--share", str(share)]
            others.append(subprocess.Popen(command, env=env))
        yield others
    finally:
        for other in others:
            other.kill()
            other.wait()


def visible_gpus(wanted: str | None) -> list[str]:
    """A value of ``CUDA_VISIBLE_DEVICES`` for each GPU; empty if no GPU is used."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted == "cpu" or not device.hardware():
        return []
    if named is not None:
        return [name for name in named.split(",") if name.strip() not in ("", "-1")]
    return [str(number) for number, _ in enumerate(device.ROOT.glob("proc/driver/nvidia/gpus/*"))]


def check(others: list[subprocess.Popen]) -> None:
    """Exit if a process has failed, with its exit status."""
    for other in others:
        if other.poll():
            raise SystemExit(other.returncode if other.returncode > 0 else 1)


def finish(extraction, args: argparse.Namespace) -> None:
    shape, bad = extraction.merge()
    for line in bad:
        print(f"warning: {printable(line)}", file=sys.stderr)
    print(f"{args.output}: features {shape}, {len(bad)} unreadable images left out")
    if args.picture:
        from projects.MAE.pictures.scatter import scatter

        with np.load(args.output, allow_pickle=False) as file:
            features, labels, classes = file["features"], file["labels"], file["classes"]
        scatter(features, labels, classes, args.projection, args.picture)
        print(args.picture)


if __name__ == "__main__":
    entry.run(main)
