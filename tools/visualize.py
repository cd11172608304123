"""Draw what a masked autoencoder reconstructs, or where an encoder looks, as a labelled figure.

    .venv/bin/python tools/visualize.py WEIGHTS IMAGE_OR_FOLDER ... [--output FILE.png]
    .venv/bin/python tools/visualize.py WEIGHTS IMAGE ... --gif FILE.gif --ratios 0.25,0.5,0.75,0.9
    .venv/bin/python tools/visualize.py WEIGHTS IMAGE ... --attention heads|rollout

WEIGHTS is a run's output folder, one of its checkpoints, or a file or folder of the official code,
timm or Hugging Face. Sizes, heads, loss, mean and deviation are read from the files next to the
weights; a missing value is logged, or must be given as an option.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from libai_ext.engine import cli as entry
from libai_ext.errors import ConfigError
from libai_ext.startup import start
from projects.MAE.option_types import mask_ratio, pair, whole


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="visualize",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("weights", metavar="WEIGHTS")
    parser.add_argument("images", nargs="+", metavar="IMAGE_OR_FOLDER")
    parser.add_argument(
        "--output", default="visualization.png", metavar="FILE", help="(%(default)s)"
    )
    parser.add_argument(
        "--samples", type=whole(1), default=8, help="of a folder, spread evenly (8)"
    )
    parser.add_argument("--mask-ratio", type=mask_ratio, help="share of the patches to hide")
    parser.add_argument("--patches", type=_numbers, help="hide these: 3,17,20-31; 0 is top left")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the masks")
    parser.add_argument("--gif", metavar="FILE", help="an animation over --ratios as well")
    parser.add_argument("--ratios", type=_ratios, default=[i / 10 for i in range(1, 10)])
    parser.add_argument("--attention", choices=("heads", "rollout"), help="instead of masking")
    parser.add_argument("--size", type=pair, metavar="HEIGHTxWIDTH", help="of the model's input")
    parser.add_argument(
        "--pixels", type=whole(1), default=224, help="longer side of a panel, about"
    )
    parser.add_argument("--norm-pix-loss", action="store_true", help="WEIGHTS were trained with it")
    parser.add_argument("--encoder-heads", type=whole(1), help="if no file says it")
    parser.add_argument("--decoder-heads", type=whole(1), help="if no file says it")
    parser.add_argument(
        "--grid", type=pair, metavar="ROWSxCOLUMNS", help="patches in WEIGHTS, if no file says it"
    )
    entry.add_allow_targets(parser)
    return parser.parse_intermixed_args()


def _numbers(text: str) -> list[int]:
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        numbers = range(int(first), int(last or first) + 1)
        if not numbers:
            raise ValueError(part)
        found.update(numbers)
    return sorted(found)


def _ratios(text: str) -> list[float]:
    return [mask_ratio(part) for part in text.split(",")]


def main() -> None:
    args = parse_args()
    start()
    # OneFlow must be initialised before anything that imports it.
    from projects.MAE.pictures import visualize as vis
    from projects.MAE.pictures.figure import image_grid, magnification
    from projects.MAE.pictures.panels import TITLES
    from projects.MAE.weights.packing import Heads

    subject = vis.load(
        args.weights,
        Heads(args.encoder_heads, args.decoder_heads),
        args.size,
        args.norm_pix_loss,
        args.grid,
    )
    for note in subject.notes:
        print(f"warning: {note}", file=sys.stderr)
    images, files = vis.read_images(subject, args.images, args.samples)
    height, width = images.shape[2:]
    scale = magnification(height, width, args.pixels)
    if args.attention:
        rows, titles = vis.attention_rows(subject, images, args.attention)
    else:
        if not (subject.has_decoder or subject.target):
            print(f"warning: {vis.NO_DECODER}", file=sys.stderr)
        hidden = vis.hidden_patches(subject, len(images), args.seed, args.mask_ratio, args.patches)
        rows, titles = vis.reconstruction_rows(subject, images, hidden), list(TITLES)
    _write(args.output, image_grid(rows, titles[: len(rows[0])], scale, files).save)
    if args.gif:
        frames = []
        for ratio in args.ratios:
            hidden = vis.hidden_patches(subject, len(images), args.seed, ratio, None)
            rows = vis.reconstruction_rows(subject, images, hidden)
            titles = [TITLES[0], f"masked {100 * ratio:.0f} %", *TITLES[2:]]
            frames.append(image_grid(rows, titles[: len(rows[0])], scale, files))
        _write(
            args.gif,
            lambda path: frames[0].save(
                path, save_all=True, append_images=frames[1:], duration=800, loop=0
            ),
        )


def _write(path: str, save) -> None:
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write {path}: {error}") from error
    print(path)


if __name__ == "__main__":
    entry.run(main)
