"""Weights in files of any style: read into our names, written in theirs.

What is known about the model is stored with the weights if the format allows it: `record.json` in a
checkpoint, `config.json` and `preprocessor_config.json` in a Hugging Face folder, a key `record` in
the official code's `.pth`, a text in `.safetensors`. A bare `.pth` or `.bin` has none.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import numpy as np

from libai_ext.checkpoint import formats, oneflow_folder, record, safetensors_file, torch_writer
from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.checkpoint.files import writing
from libai_ext.files.atomic import atomic_folder
from projects.MAE.weights import huggingface
from projects.MAE.weights.describe import DECODER, KEY, Source, contents_of, describe
from projects.MAE.weights.foreign import CONFIG, PREPROCESSOR
from projects.MAE.weights.mapping import from_ours, to_ours
from projects.MAE.weights.names import PROBE_HEAD, PROBE_NORM
from projects.MAE.weights.packing import PUBLISHED, Heads
from projects.MAE.weights.record import EMPTY, Record

SAFETENSORS = ".safetensors"
TORCH_SUFFIXES = (".pth", ".pt", ".bin")
# eps of the batch norm before a linear probe's head.
PROBE_EPS = 1e-6


def read_weights(
    path: str | os.PathLike[str],
    heads: Heads = PUBLISHED,
    grid: tuple[int, int] | None = None,
) -> tuple[dict[str, np.ndarray], Source]:
    """Read a checkpoint of any format and style.

    Args:
        path: `.pth`, `.bin` or `.safetensors` file, a Hugging Face folder, a LiBai checkpoint, or
            the output folder of a run for its last one.
        heads, grid: given by the user, for a file that does not give them.

    Returns:
        Our names -> arrays (read-only views of the mapped file if the layout is the same), and what
        is known about them. Types are as in the file, but bfloat16 becomes float32, exactly.

    Raises:
        CheckpointError: names the file and what is wrong, or which values contradict each other.
    """
    state, source = describe(path, heads, grid)
    try:
        weights, left_out = to_ours(state, source.style, source.heads)
    except CheckpointError as error:
        raise CheckpointError(f"{source.path}: {error}") from None
    return weights, replace(source, left_out=tuple(left_out))


def write_fb(
    weights: dict[str, np.ndarray], path: str, heads: Heads = PUBLISHED, known: Record = EMPTY
) -> None:
    """Write like the official MAE: {"model": state dict} in a `.pth`, or a `.safetensors`.

    A linear probe's head gets the official probe's names.
    """
    state = from_ours(weights, "fb", heads)
    if any(name.startswith("head_norm.") for name in state):
        state = {_probe_name(name): array for name, array in state.items()}
    _write_state(state, path, known, "model")


def _probe_name(name: str) -> str:
    for ours, theirs in (("head_norm.", PROBE_NORM), ("head.", PROBE_HEAD)):
        if name.startswith(ours):
            return theirs + name[len(ours) :]
    return name


def write_timm(
    weights: dict[str, np.ndarray], path: str, heads: Heads = PUBLISHED, known: Record = EMPTY
) -> list[str]:
    """Write a bare state dict for timm's VisionTransformer.

    timm has no MAE decoder: the decoder's names are left out and returned.
    """
    decoder = [name for name in weights if name.startswith(DECODER)]
    kept = {name: array for name, array in weights.items() if name not in decoder}
    _write_state(from_ours(kept, "fb", heads), path, known)
    return decoder


def fold_probe(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Turn a linear probe into a plain classifier, for styles without a batch norm: it becomes part
    of the head. Computed in float64."""
    mean = weights["head_norm.running_mean"].astype(np.float64)
    scale = 1 / np.sqrt(weights["head_norm.running_var"].astype(np.float64) + PROBE_EPS)
    weight, bias = weights["head.weight"], weights["head.bias"]  # [D, N], [N]
    folded = weight * scale[:, None]
    kept = {name: array for name, array in weights.items() if not name.startswith("head")}
    return {
        **kept,
        "head.weight": folded.astype(weight.dtype),
        "head.bias": (bias - mean @ folded).astype(bias.dtype),
    }


def write_hf(
    weights: dict[str, np.ndarray],
    path: str,
    heads: Heads = PUBLISHED,
    grid: tuple[int, int] | None = None,
    known: Record = EMPTY,
) -> None:
    """Write for Hugging Face: a folder for `from_pretrained`, or a bare `.bin` or `.safetensors`.

    Args:
        grid: (rows, columns) of patches for config.json; if not given, those of `known`.
            ViTMAEForPreTraining of transformers computes its loss only for square images.
        known: the model's loss, mask ratio, preprocessing and classes.
    """
    contents = contents_of(weights)
    # `from_pretrained` expects no prefix for the base class, and the prefix for the others.
    prefix = "" if contents == "encoder" else "vit."
    state = {
        name if name.startswith(("decoder.", "classifier.")) else prefix + name: array
        for name, array in from_ours(weights, "hf", heads).items()
    }
    if os.path.splitext(path)[1]:
        _write_state(state, path, known)
        return
    config = huggingface.config(weights, contents, heads, grid, known)
    files = {CONFIG: config, PREPROCESSOR: huggingface.preprocessor(config["image_size"], known)}
    with writing(path), atomic_folder(path) as temporary:
        safetensors_file.save(state, os.path.join(temporary, formats.PRETRAINED_FILES[0]))
        for name, content in files.items():
            if content is not None:
                with open(os.path.join(temporary, name), "w") as file:
                    json.dump(content, file, indent=2, sort_keys=True)


def write_oneflow(weights: dict[str, np.ndarray], path: str, known: Record = EMPTY) -> None:
    """Write a LiBai checkpoint folder with only the model and its record."""
    texts = {record.RECORD: record.dumps(known.plain())} if known.model else {}
    oneflow_folder.save(weights, path, texts)


def _write_state(
    state: dict[str, np.ndarray], path: str, known: Record = EMPTY, wrapper: str = ""
) -> None:
    """Write a state dict in the format of the suffix; wrapper and record if the format has them."""
    suffix = os.path.splitext(path)[1]
    texts = {KEY: record.dumps(known.plain())} if known.model else {}
    if suffix == SAFETENSORS:
        safetensors_file.save(state, path, texts)
    elif suffix in TORCH_SUFFIXES:
        ordered: Any = OrderedDict(state)
        torch_writer.save({wrapper: ordered, **texts} if wrapper else ordered, path)
    else:
        suffixes = ", ".join((*TORCH_SUFFIXES, SAFETENSORS))
        raise CheckpointError(f"{path}: the name must end in one of {suffixes}")
