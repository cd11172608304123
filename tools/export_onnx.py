"""Write an encoder, with its class head if there is one, as an ONNX file.

    .venv/bin/python tools/export_onnx.py WEIGHTS OUT.onnx

WEIGHTS: a run with any layout, or a file or folder of the official code, timm or Hugging Face. The
input `images` [batch, channels, height, width] must be normalised: mean, deviation and class names
are in the file's metadata, as JSON under `record`. Outputs: `tokens` [batch, 1 + patches, width],
class token first, and `logits` [batch, classes].
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util

from libai_ext.engine import cli as entry
from libai_ext.errors import ConfigError
from libai_ext.text import printable
from projects.MAE.option_types import pair, whole
from projects.MAE.weights import files
from projects.MAE.weights.packing import Heads


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="export_onnx",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("weights", metavar="WEIGHTS")
    parser.add_argument("output", metavar="OUT.onnx")
    parser.add_argument("--encoder-heads", type=whole(1), metavar="N", help="where nothing tells")
    parser.add_argument("--decoder-heads", type=whole(1), metavar="N", help="where nothing tells")
    parser.add_argument("--grid", type=pair, metavar="ROWSxCOLUMNS", help="where nothing tells")
    args = parser.parse_args()
    if importlib.util.find_spec("onnx") is None:
        raise ConfigError("the package onnx is not installed: pip install onnx==1.17.0")
    # Imported here: it imports onnx.
    from projects.MAE.weights import onnx_graph

    heads = Heads(args.encoder_heads, args.decoder_heads)
    weights, source = files.read_weights(args.weights, heads, args.grid)
    if "head_norm.running_mean" in weights:
        weights = files.fold_probe(weights)
        source = dataclasses.replace(source, record=source.record.having(batch_norm=False))
        print("note: the batch norm before the head becomes part of the head")
    for note in source.notes:
        print(f"note: {printable(note)}")
    for file in onnx_graph.write(onnx_graph.build(weights, source), args.output):
        print(file)


if __name__ == "__main__":
    entry.run(main)
