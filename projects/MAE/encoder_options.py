"""The options of the tools that use an encoder."""

from __future__ import annotations

import argparse

from libai_ext.engine import cli
from projects.MAE import load_encoder
from projects.MAE.option_types import pair, whole


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Values that a weights file may not give; see ``projects.MAE.load_encoder``."""
    parser.add_argument("--device", choices=("cpu", "cuda"), help="unset: a GPU where there is one")
    parser.add_argument("--size", type=pair, metavar="HEIGHTxWIDTH", help="of the model's input")
    parser.add_argument("--encoder-heads", type=whole(1), metavar="N", help="where nothing tells")
    parser.add_argument(
        "--grid", type=pair, metavar="ROWSxCOLUMNS", help="patches in WEIGHTS, where nothing tells"
    )
    cli.add_allow_targets(parser)


def load(args: argparse.Namespace):
    """The encoder that the options ask for; initialises OneFlow."""
    return load_encoder(
        args.weights,
        device=args.device,
        img_size=args.size,
        heads=args.encoder_heads,
        grid=args.grid,
    )
