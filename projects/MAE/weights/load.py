"""Weights of any file into a model."""

from __future__ import annotations

import logging

import oneflow as flow

from libai_ext.layers.initialize import assign
from projects.MAE.modeling.mae import MaskedAutoencoder
from projects.MAE.weights.files import read_weights
from projects.MAE.weights.match import match
from projects.MAE.weights.packing import Heads

logger = logging.getLogger(__name__)


def load_weights(model: MaskedAutoencoder, path: str) -> None:
    """Start from a checkpoint of this project, the official code, timm or Hugging Face.

    Strict: the decoder must be there too. Position tables of another size are interpolated to
    the model's grid. What became of every tensor is logged.

    Raises:
        CheckpointError: names the file, and what in it does not fit.
    """
    heads = Heads(
        encoder=model.blocks[0].num_attention_heads,
        decoder=model.decoder_blocks[0].num_attention_heads,
    )
    weights, source = read_weights(path, heads)
    state = model.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    matched = match(shapes, weights, grid=model.patch_embed.grid_size)
    with flow.no_grad():
        for name, array in matched.weights.items():
            assign(state[name], array)
    logger.info(f"weights of {path} (style {source.style})\n{matched.table()}")
