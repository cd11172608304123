"""Weights in files of any style: read into our names, written in theirs."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np

from libai_ext.checkpoint import formats, oneflow_folder, safetensors_file, torch_writer
from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.checkpoint.files import atomic_folder
from projects.MAE.weights import huggingface
from projects.MAE.weights.mapping import find_state_dict, from_ours, recognise, to_ours
from projects.MAE.weights.match import DECODER
from projects.MAE.weights.packing import PUBLISHED, Heads

CONFIG = "config.json"
SAFETENSORS = ".safetensors"
TORCH_SUFFIXES = (".pth", ".pt", ".bin")


@dataclass(frozen=True)
class Source:
    """What a file turned out to hold.

    Attributes:
        path: as it was asked for.
        style: a member of `names.STYLES`.
        contents: "pretraining" (encoder and decoder), "encoder" or "classifier".
        heads: as given, or as the config.json beside the file says.
        dtypes: the types of its tensors; bfloat16 has been widened to float32.
        left_out: names that no model of ours has a place for.
    """

    path: str
    style: str
    contents: str
    heads: Heads
    dtypes: tuple[str, ...]
    left_out: tuple[str, ...]


def contents_of(names: Any) -> str:
    """What a set of our names is: see `Source.contents`."""
    if any(name.startswith(DECODER) for name in names):
        return "pretraining"
    return "classifier" if any(name.startswith("head.") for name in names) else "encoder"


def read_weights(
    path: str | os.PathLike[str], heads: Heads = PUBLISHED
) -> tuple[dict[str, np.ndarray], Source]:
    """Read a checkpoint of any format and style.

    Args:
        path: `.pth`, `.bin` or `.safetensors` file, a Hugging Face folder, or a LiBai checkpoint.
        heads: only needed where the widths are not those of a published model.

    Returns:
        Our names -> arrays (views of the mapped file where the layout is the same, read-only), and
        where they came from. Types are as in the file, except bfloat16: exactly widened to float32.

    Raises:
        CheckpointError: names the file and what is wrong with it.
    """
    path = os.fspath(path)
    tree = formats.inspect(path)
    try:
        state, _ = find_state_dict(tree)
        style = recognise(state)
        if style in ("hf", "hf5"):
            heads = huggingface.heads_in_config(_config_beside(path), heads)
        weights, left_out = to_ours(state, style, heads)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    dtypes = tuple(sorted({str(tensor.dtype) for tensor in state.values()}))
    return weights, Source(path, style, contents_of(weights), heads, dtypes, tuple(left_out))


def _config_beside(path: str) -> str:
    located = formats.locate(path)
    folder = located if os.path.isdir(located) else os.path.dirname(located)
    return os.path.join(folder, CONFIG)


def write_fb(weights: dict[str, np.ndarray], path: str, heads: Heads = PUBLISHED) -> None:
    """Write as the official MAE does: {"model": state dict} in a `.pth`, or `.safetensors`."""
    _write_state(from_ours(weights, "fb", heads), path, "model")


def write_timm(weights: dict[str, np.ndarray], path: str, heads: Heads = PUBLISHED) -> list[str]:
    """Write a bare state dict for timm's VisionTransformer; returns the decoder's names, left out.

    timm has no MAE decoder.
    """
    decoder = [name for name in weights if name.startswith(DECODER)]
    kept = {name: array for name, array in weights.items() if name not in decoder}
    _write_state(from_ours(kept, "fb", heads), path)
    return decoder


def write_hf(
    weights: dict[str, np.ndarray],
    path: str,
    heads: Heads = PUBLISHED,
    grid: tuple[int, int] | None = None,
) -> None:
    """Write for Hugging Face: a folder for `from_pretrained`, or a bare `.bin` or `.safetensors`.

    Args:
        grid: (rows, columns) of patches, for the folder's config.json; a square when not given.
            ViTMAEForPreTraining of transformers computes its loss for square images only.
    """
    contents = contents_of(weights)
    # `from_pretrained` of the base class expects names without the prefix, of the others with it.
    prefix = "" if contents == "encoder" else "vit."
    state = {
        name if name.startswith(("decoder.", "classifier.")) else prefix + name: array
        for name, array in from_ours(weights, "hf", heads).items()
    }
    if os.path.splitext(path)[1]:
        _write_state(state, path)
        return
    config = huggingface.config(weights, contents, heads, grid)
    with atomic_folder(path) as temporary:
        safetensors_file.save(state, os.path.join(temporary, formats.PRETRAINED_FILES[0]))
        with open(os.path.join(temporary, CONFIG), "w") as file:
            json.dump(config, file, indent=2, sort_keys=True)


def write_oneflow(weights: dict[str, np.ndarray], path: str) -> None:
    """Write a LiBai checkpoint folder that holds the model alone."""
    oneflow_folder.save(weights, path)


def _write_state(state: dict[str, np.ndarray], path: str, wrapper: str = "") -> None:
    """A state dict in the format that the suffix names; the wrapper only where it can be."""
    suffix = os.path.splitext(path)[1]
    if suffix == SAFETENSORS:
        safetensors_file.save(state, path)
    elif suffix in TORCH_SUFFIXES:
        ordered: Any = OrderedDict(state)
        torch_writer.save({wrapper: ordered} if wrapper else ordered, path)
    else:
        known = ", ".join((*TORCH_SUFFIXES, SAFETENSORS))
        raise CheckpointError(f"{path}: the name must end in one of {known}")
