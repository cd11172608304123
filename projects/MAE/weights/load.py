"""Load weights of any file into a model."""

from __future__ import annotations

import logging
import os
from typing import Any, Mapping, Sequence

import numpy as np
import oneflow as flow

from libai_ext.checkpoint import manifest, oneflow_folder
from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.errors import ConfigError
from libai_ext.layers.initialize import assign
from projects.MAE.modeling.mae import MaskedAutoencoder
from projects.MAE.modeling.vit import ViTClassifier
from projects.MAE.weights import compare
from projects.MAE.weights.describe import DECODER, Source, describe
from projects.MAE.weights.mapping import names_in, to_ours
from projects.MAE.weights.match import Match, match
from projects.MAE.weights.packing import PUBLISHED, Heads
from projects.MAE.weights.shapes import sizes_of

logger = logging.getLogger(__name__)

PATCHES = "patch_embed.proj.weight"  # [D, C, P, P]


def load_weights(
    model: MaskedAutoencoder | ViTClassifier,
    path: str,
    replaced: Sequence[str] = (),
    weight_style: str | None = None,
    grid: Sequence[int] | None = None,
    heads: Heads = PUBLISHED,
    new: Sequence[str] = (),
) -> None:
    """Start from a checkpoint of this project, the official code, timm or Hugging Face.

    Strict: every tensor must be there, except those in ``replaced`` and ``new``, and the file must
    not say that it belongs to another model. Position tables of another grid are interpolated to
    the model's. The log says what was done with every tensor.

    Args:
        path: a file or folder of weights; for a run's output folder, its last checkpoint is used.
        replaced, new: prefixes of names, see :func:`projects.MAE.weights.match.match`.
        weight_style: "oneflow" or "pytorch", to check the style.
        grid, heads: of the file, if it does not give them: (rows, columns) of its position tables,
            numbers of attention heads.

    Raises:
        CheckpointError: names the file and what does not fit.
        ConfigError: an unknown ``weight_style``.
    """
    if weight_style not in (None, "oneflow", "pytorch"):
        raise ConfigError(
            f"finetune.weight_style must be 'oneflow' or 'pytorch', not {weight_style!r}"
        )
    state, source = describe(path, heads, (grid[0], grid[1]) if grid else None)
    found = "oneflow" if source.style == "ours" else "pytorch"
    if weight_style not in (None, found):
        raise CheckpointError(
            f"{path} holds weights in the style of {found}, finetune.weight_style says "
            f"{weight_style}"
        )
    own = _sizes(model)
    _check(own, source, (*replaced, *new))
    tensors = model.state_dict()
    # The file's decoder is skipped if the model has none: its number of heads may be unknown.
    skip = () if hasattr(model, "decoder_blocks") else DECODER
    try:
        weights, left_out = to_ours(state, source.style, _heads(own, source), skip)
        if compare.grey_of_colours(own, source.record.model):
            weights[PATCHES] = weights[PATCHES].sum(axis=1, keepdims=True)
            logger.warning(
                f"{path}: the model has one channel, the file three: its patch embedding is the "
                "sum over them"
            )
        matched = match_and_assign(model, tensors, weights, replaced, source, new)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    skipped = [name for name in names_in(state, source.style) if name.startswith(tuple(skip))]
    matched.left_out += skipped + left_out
    _log(source, own, matched.table())


def load_average(
    model: MaskedAutoencoder | ViTClassifier,
    averages: Mapping[str, flow.Tensor],
    path: str,
    grid: Sequence[int] | None = None,
) -> None:
    """Load the moving average of the weights (``train.ema``) from a checkpoint of a run.

    Args:
        averages: of the model's weights, by name; they are filled.
        path, grid: see :func:`load_weights`.

    Raises:
        ConfigError: there is no average.
        CheckpointError: it is of another model.
    """
    source = describe(path, grid=(grid[0], grid[1]) if grid else None)[1]
    folder = os.path.join(source.located, "ema")
    if not os.path.isdir(folder):
        raise ConfigError(
            f"{path} holds no moving average of the weights: train.ema.enabled=False evaluates the "
            "weights themselves"
        )
    manifest.verify_part(source.located, "ema")
    try:
        found = oneflow_folder.load(folder)
        if not isinstance(found, dict) or not all(type(v) is np.ndarray for v in found.values()):
            raise CheckpointError("not the averages of weights")
        match_and_assign(model, averages, found, (), source)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None


def match_and_assign(
    model: Any,
    tensors: Mapping[str, flow.Tensor],
    weights: Mapping[str, np.ndarray],
    replaced: Sequence[str],
    source: Source,
    new: Sequence[str] = (),
) -> Match:
    """Fit weights to a model, and copy them into its tensors.

    Args:
        model: has a ``patch_embed``.
        tensors: those of the model that are to be filled, by name.
        weights: under our names.
        replaced, new: see :func:`projects.MAE.weights.match.match`.
        source: describes the weights.

    Raises:
        CheckpointError: they do not fit.
    """
    matched = match(
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
        weights,
        replaced=replaced,
        new=new,
        grid=model.patch_embed.grid_size,
        source_grid=source.grid,
    )
    with flow.no_grad():
        for name, array in matched.weights.items():
            assign(tensors[name], array)
    return matched


def _sizes(model: MaskedAutoencoder | ViTClassifier) -> dict[str, Any]:
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    sizes = dict(sizes_of(shapes), num_heads=model.blocks[0].num_attention_heads)
    if hasattr(model, "decoder_blocks"):
        sizes["decoder_num_heads"] = model.decoder_blocks[0].num_attention_heads
    return dict(sizes, grid=model.patch_embed.grid_size)


def _check(own: dict[str, Any], source: Source, replaced: Sequence[str]) -> None:
    """
    Raises:
        CheckpointError: the file's model has other sizes; names both values of each.
    """
    keys: tuple[str, ...] = compare.ENCODER
    if "decoder_depth" in own and source.contents == "pretraining":
        keys += compare.DECODER
    if "num_classes" in own and "head." not in replaced:
        if source.contents != "classifier":
            raise CheckpointError(
                f"{source.path} holds a model without a class head: to fine-tune it, give it as "
                "finetune.path"
            )
        keys += compare.HEAD
    if compare.grey_of_colours(own, source.record.model) and replaced:
        keys = tuple(key for key in keys if key != "in_chans")
    differing = compare.contradictions(own, source.record.model, keys)
    if differing:
        raise CheckpointError(f"{source.path} is of another model: {'; '.join(differing)}")


def _heads(own: dict[str, Any], source: Source) -> Heads:
    """The file's numbers of heads; if it does not give them, the model's."""
    return Heads(
        source.heads.encoder or own["num_heads"],
        source.heads.decoder or own.get("decoder_num_heads"),
    )


def _log(source: Source, own: dict[str, Any], table: str) -> None:
    logger.info(f"weights of {source.located} (style {source.style}): {source.summary()}\n{table}")
    for note in source.notes:
        logger.info(f"{source.path}: {note}")
    notes = []
    if source.heads.encoder is None:
        notes.append(f"the file does not say how many heads: {own['num_heads']}, as the model has")
    if source.grid is None:
        rows, columns = own["grid"]
        notes.append(f"the file does not say its grid: taken for {rows} x {columns}, the model's")
    for note in notes:
        logger.warning(f"{source.path}: {note}")
