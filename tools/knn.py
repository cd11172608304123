"""k-NN accuracy of a pre-trained encoder's frozen features.

    .venv/bin/python tools/knn.py projects/MAE/configs/mae_digits.py

Nothing is trained. The feature of an image is its mean patch token, or the input of a classifier's
head. Training samples vote, weighted by cosine similarity. The weights come from train.load_weight,
else from the run in train.output_dir, else from finetune.path.
"""

from __future__ import annotations

import argparse

from libai_ext.engine import cli as entry
from libai_ext.startup import start
from projects.MAE.option_types import whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="of the run: data, model, train.output_dir")
    parser.add_argument(
        "--neighbours", type=whole(1), nargs="+", help="1 5 10 20, up to the number of samples"
    )
    entry.add_allow_targets(parser)
    parser.add_argument("opts", nargs="*", metavar="key=value", help="config overrides")
    args = parser.parse_intermixed_args()
    start()
    # OneFlow must be initialised before anything that imports it.
    from projects.MAE.evaluation.probe import load_run, nearest_neighbours

    results = nearest_neighbours(load_run(args.config, args.opts), args.neighbours)
    for count, share in results.items():
        print(f"{count:3d} neighbours  top-1 {share:.2f} %")


if __name__ == "__main__":
    entry.run(main)
