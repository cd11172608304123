"""The files that Hugging Face stores with weights: config.json and preprocessor_config.json."""

from __future__ import annotations

from typing import Any, Mapping

import numpy as np

from libai_ext.checkpoint.errors import CheckpointError
from projects.MAE.weights.names import split_number
from projects.MAE.weights.packing import Heads
from projects.MAE.weights.record import EMPTY, Record
from projects.MAE.weights.shapes import grids

ARCHITECTURES = {
    "pretraining": ("ViTMAEForPreTraining", "vit_mae"),
    "encoder": ("ViTMAEModel", "vit_mae"),
    "classifier": ("ViTForImageClassification", "vit"),
}
# Keys of the loss, with the same names as here. transformers uses its defaults for missing keys.
LOSS = ("mask_ratio", "norm_pix_loss")
BICUBIC = 3  # Pillow's number
# This project's own key in preprocessor_config.json: what evaluation did with an image. It may
# differ from the plain resize that transformers does.
TRANSFORM = "evaluation_transform"
# The keys of a record's data about images of any number of channels, and where they are kept.
CHANNELS, AS_STORED = "channels_as_stored", ("mode", "divisors", "picture_channels")

# Another one, as in the record: images are decoded as by torchvision.
DECODED = "as_torchvision"


def config(
    weights: Mapping[str, np.ndarray],
    contents: str,
    heads: Heads,
    grid: tuple[int, int] | None = None,
    known: Record = EMPTY,
) -> dict[str, Any]:
    """The configuration of the Hugging Face model that holds these weights.

    Args:
        weights: under our names.
        contents: a key of `ARCHITECTURES`.
        grid: (rows, columns) of patches; if not given, those of `known`.
        known: what is known about the model.

    Raises:
        CheckpointError: the grid is not known, or the position table has another one.
    """
    width, channels, patch, _ = weights["patch_embed.proj.weight"].shape
    height, breadth = _image_size(weights["pos_embed"].shape[1] - 1, patch, grid, known)
    architecture, model_type = ARCHITECTURES[contents]
    result = {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": width,
        "num_hidden_layers": _depth(weights, "blocks"),
        "num_attention_heads": heads.of("blocks", width),
        "intermediate_size": weights["blocks.0.mlp.dense_h_to_4h.bias"].shape[0],
        "image_size": height if height == breadth else [height, breadth],
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
        result.update({key: known.model[key] for key in LOSS if key in known.model})
    if contents == "classifier":
        classes = weights["head.bias"].shape[0]
        names = known.classes or [f"LABEL_{index}" for index in range(classes)]
        result["id2label"] = {str(index): name for index, name in enumerate(names)}
        result["label2id"] = {name: index for index, name in enumerate(names)}
    return result


def preprocessor(image_size: int | list[int], known: Record) -> dict[str, Any] | None:
    """How to prepare an image for the model, for transformers and this project; None if mean and
    deviation are not known."""
    if "mean" not in known.data or "std" not in known.data:
        return None
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    own: dict[str, Any] = {}
    if "transform" in known.data:
        own[TRANSFORM] = known.data["transform"]
    if known.data.get(DECODED):
        own[DECODED] = True
    if type(known.data.get("mode")) is int:
        own[CHANNELS] = {key: known.data[key] for key in AS_STORED if key in known.data}
    return {
        **own,
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(known.data["mean"]),
        "image_std": list(known.data["std"]),
        "do_convert_rgb": known.data.get("mode", "RGB") == "RGB",
    }


def _image_size(
    patches: int, patch: int, grid: tuple[int, int] | None, known: Record
) -> tuple[int, int]:
    """(height, width) in pixels."""
    if grid is None and "img_size" in known.model:
        height, width = known.model["img_size"]
        grid = height // patch, width // patch
    if grid is None:
        choices = ", ".join(f"{rows}x{columns}" for rows, columns in grids(patches))
        raise CheckpointError(
            f"the grid of its {patches} patches is not known: say which it is of {choices} (--grid)"
        )
    if grid[0] * grid[1] != patches:
        raise CheckpointError(
            f"{patches} patches are not a {grid[0]} x {grid[1]} grid: give its rows and columns"
        )
    return grid[0] * patch, grid[1] * patch


def _depth(weights: Mapping[str, np.ndarray], blocks: str) -> int:
    return len({split_number(name)[1] for name in weights if name.startswith(f"{blocks}.")})
