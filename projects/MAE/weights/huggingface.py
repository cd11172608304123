"""The config.json that Hugging Face keeps beside its weights."""

from __future__ import annotations

import json
import os
from typing import Any, Mapping

import numpy as np

from libai_ext.checkpoint.errors import CheckpointError
from projects.MAE.weights.names import split_number
from projects.MAE.weights.packing import Heads

ARCHITECTURES = {
    "pretraining": ("ViTMAEForPreTraining", "vit_mae"),
    "encoder": ("ViTMAEModel", "vit_mae"),
    "classifier": ("ViTForImageClassification", "vit"),
}
MAX_CONFIG = 1 << 20


def heads_in_config(path: str, given: Heads) -> Heads:
    """Fill what `given` leaves open from the config.json at `path`, if there is one.

    Raises:
        CheckpointError: the file is not JSON, or a number of heads in it is not a number.
    """
    if not os.path.isfile(path):
        return given
    try:
        with open(path, encoding="utf-8") as file:
            config = json.loads(file.read(MAX_CONFIG))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: not a configuration")
    found = [config.get("num_attention_heads"), config.get("decoder_num_attention_heads")]
    if any(heads is not None and (type(heads) is not int or heads < 1) for heads in found):
        raise CheckpointError(f"{path}: the number of attention heads is not a positive number")
    return Heads(given.encoder or found[0], given.decoder or found[1])


def config(
    weights: Mapping[str, np.ndarray],
    contents: str,
    heads: Heads,
    grid: tuple[int, int] | None,
) -> dict[str, Any]:
    """The configuration of the Hugging Face model that holds these weights.

    Args:
        weights: under our names.
        contents: a key of `ARCHITECTURES`.
        grid: (rows, columns) of patches; a square when not given.

    Raises:
        CheckpointError: the position table is not of the grid.
    """
    width, channels, patch, _ = weights["patch_embed.proj.weight"].shape
    patches = weights["pos_embed"].shape[1] - 1
    rows, columns = grid or (round(patches**0.5),) * 2
    if rows * columns != patches:
        raise CheckpointError(
            f"{patches} patches are not a {rows} x {columns} grid: give its rows and columns"
        )
    architecture, model_type = ARCHITECTURES[contents]
    image_size = (rows * patch, columns * patch)
    result = {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": width,
        "num_hidden_layers": _depth(weights, "blocks"),
        "num_attention_heads": heads.of("blocks", width),
        "intermediate_size": weights["blocks.0.mlp.dense_h_to_4h.bias"].shape[0],
        "image_size": image_size[0] if rows == columns else list(image_size),
        "patch_size": patch,
        "num_channels": channels,
        "qkv_bias": True,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    }
    if contents == "pretraining":
        decoder_width = weights["mask_token"].shape[-1]
        result.update(
            decoder_hidden_size=decoder_width,
            decoder_num_hidden_layers=_depth(weights, "decoder_blocks"),
            decoder_num_attention_heads=heads.of("decoder_blocks", decoder_width),
            decoder_intermediate_size=weights["decoder_blocks.0.mlp.dense_h_to_4h.bias"].shape[0],
        )
    if contents == "classifier":
        classes = weights["head.bias"].shape[0]
        result["id2label"] = {str(index): f"LABEL_{index}" for index in range(classes)}
        result["label2id"] = {f"LABEL_{index}": index for index in range(classes)}
    return result


def _depth(weights: Mapping[str, np.ndarray], blocks: str) -> int:
    return len({split_number(name)[1] for name in weights if name.startswith(f"{blocks}.")})
