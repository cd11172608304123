"""Download weights that the authors of MAE have published; without a NAME, list them.

    .venv/bin/python tools/fetch.py mae_pretrain_vit_base

The file is checked by its published MD5, as far as one is published, and can then be given as
train.load_weight, finetune.path, or to any tool. An interrupted download continues.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import NamedTuple

from libai_ext.data.download import fetch
from libai_ext.engine import cli as entry
from libai_ext.errors import DataError
from projects.MAE.weights.describe import describe


class Published(NamedTuple):
    """A file of facebookresearch/mae: its place below BASE, the first six digits of its MD5 as
    README.md and FINETUNE.md there give them, and its contents."""

    place: str
    md5: str
    what: str


BASE = "https://dl.fbaipublicfiles.com/mae"
WEIGHTS = {
    Path(file.place).stem: file
    for file in (
        Published("pretrain/mae_pretrain_vit_base.pth", "8cad7c", "ViT-B encoder"),
        Published("pretrain/mae_pretrain_vit_large.pth", "b8b06e", "ViT-L encoder"),
        Published("pretrain/mae_pretrain_vit_huge.pth", "9bdbb0", "ViT-H encoder"),
        Published("finetune/mae_finetuned_vit_base.pth", "1b25e9", "ViT-B, 83.66 % on ImageNet"),
        Published("finetune/mae_finetuned_vit_large.pth", "51f550", "ViT-L, 85.95 %"),
        Published("finetune/mae_finetuned_vit_huge.pth", "2541f2", "ViT-H, 86.93 %"),
        Published("visualize/mae_visualize_vit_large.pth", "", "ViT-L with its decoder"),
        Published(
            "visualize/mae_visualize_vit_large_ganloss.pth", "", "the same, trained with a GAN loss"
        ),
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", choices=WEIGHTS, metavar="NAME")
    parser.add_argument("--folder", type=Path, default=Path("weights"), help="for the file")
    parser.add_argument("--base", default=BASE, metavar="URL", help=f"of a mirror of {BASE}")
    args = parser.parse_args()
    if args.name is None:
        for name, published in WEIGHTS.items():
            print(f"{name:32}  md5 {published.md5 or '(none)':6}  {published.what}")
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    published = WEIGHTS[args.name]
    path = args.folder / f"{args.name}.pth"
    try:
        args.folder.mkdir(parents=True, exist_ok=True)
        fetch(f"{args.base.rstrip('/')}/{published.place}", path, published.md5)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from error
    if not published.md5:
        print(f"no MD5 is published for {args.name}: the download is not checked")
    source = describe(path)[1]
    print(f"{path}: {source.contents}, {source.summary()}")


if __name__ == "__main__":
    entry.run(main)
