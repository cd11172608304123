"""Weights of any file into a model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Sequence

import oneflow as flow

from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.errors import ConfigError
from libai_ext.layers.initialize import assign
from projects.MAE.modeling.mae import MaskedAutoencoder
from projects.MAE.modeling.vit import ViTClassifier
from projects.MAE.weights.files import read_weights
from projects.MAE.weights.match import match
from projects.MAE.weights.packing import Heads

logger = logging.getLogger(__name__)


def load_weights(
    model: MaskedAutoencoder | ViTClassifier,
    path: str,
    replaced: Sequence[str] = (),
    weight_style: str | None = None,
) -> None:
    """Start from a checkpoint of this project, the official code, timm or Hugging Face.

    Strict: everything must be there, but for what is ``replaced``. Position tables of another
    size are interpolated to the model's grid. What became of every tensor is logged.

    Args:
        path: a file or folder of weights; a run's output folder stands for its last checkpoint.
        replaced: prefixes of names, see :func:`projects.MAE.weights.match.match`.
        weight_style: "oneflow" or "pytorch" where the style is to be checked.

    Raises:
        CheckpointError: names the file, and what in it does not fit.
        ConfigError: an unknown ``weight_style``.
    """
    if weight_style not in (None, "oneflow", "pytorch"):
        raise ConfigError(
            f"finetune.weight_style must be 'oneflow' or 'pytorch', not {weight_style!r}"
        )
    path = _last_checkpoint(path)
    decoder = getattr(model, "decoder_blocks", None)
    heads = Heads(
        encoder=model.blocks[0].num_attention_heads,
        decoder=decoder[0].num_attention_heads if decoder is not None else None,
    )
    weights, source = read_weights(path, heads)
    found = "oneflow" if source.style == "ours" else "pytorch"
    if weight_style not in (None, found):
        raise CheckpointError(
            f"{path} holds weights in the style of {found}, finetune.weight_style says "
            f"{weight_style}"
        )
    state = model.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    try:
        matched = match(shapes, weights, replaced=replaced, grid=model.patch_embed.grid_size)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    with flow.no_grad():
        for name, array in matched.weights.items():
            assign(state[name], array)
    logger.info(f"weights of {path} (style {source.style})\n{matched.table()}")


def _last_checkpoint(path: str) -> str:
    pointer = Path(path, "last_checkpoint")
    return str(Path(path, pointer.read_text().strip())) if pointer.is_file() else path
