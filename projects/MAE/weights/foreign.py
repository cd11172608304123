"""What other programs' files say about their models, as a `Record`."""

from __future__ import annotations

import json
import os
from typing import Any, Mapping

from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.checkpoint.plain import Placeholder
from libai_ext.checkpoint.record import read_text
from projects.MAE.weights.huggingface import AS_STORED, CHANNELS, DECODED, TRANSFORM
from projects.MAE.weights.record import EMPTY, Record, parse, sound

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"


def huggingface(folder: str) -> Record:
    """From transformers' ``config.json`` and ``preprocessor_config.json``, if they exist.

    Raises:
        CheckpointError: one is not JSON, or holds an impossible value; or the model has another
            activation than exact GELU.
    """
    path = os.path.join(folder, CONFIG)
    config = _json(path)
    preprocessor = _json(os.path.join(folder, PREPROCESSOR))
    if config is None and preprocessor is None:
        return EMPTY
    config, preprocessor = config or {}, preprocessor or {}
    activation = config.get("hidden_act", "gelu")
    if activation != "gelu":
        raise CheckpointError(
            f"{path}: hidden_act {str(activation)[:40]!r}: models here have exact GELU, 'gelu'"
        )
    model = {
        "img_size": _pair(config.get("image_size")),
        "patch_size": _side(config.get("patch_size")),
        "in_chans": config.get("num_channels"),
        "embed_dim": config.get("hidden_size"),
        "depth": config.get("num_hidden_layers"),
        "num_heads": config.get("num_attention_heads"),
        "decoder_embed_dim": config.get("decoder_hidden_size"),
        "decoder_depth": config.get("decoder_num_hidden_layers"),
        "decoder_num_heads": config.get("decoder_num_attention_heads"),
        "mask_ratio": config.get("mask_ratio"),
        "norm_pix_loss": config.get("norm_pix_loss"),
    }
    data = {
        "mode": {"1": "L", "3": "RGB"}.get(str(config.get("num_channels"))),
        "mean": _channels(preprocessor.get("image_mean"), config),
        "std": _channels(preprocessor.get("image_std"), config),
        "transform": preprocessor.get(TRANSFORM),
        DECODED: preprocessor.get(DECODED),
    }
    stored = preprocessor.get(CHANNELS)
    if isinstance(stored, dict):
        data.update({key: stored.get(key) for key in AS_STORED})
    return parse({"model": model, "data": data, "classes": _labels(config.get("id2label"))}, path)


def timm(folder: str) -> Record:
    """From the ``config.json`` that timm stores next to its weights on the hub.

    Raises:
        CheckpointError: it is not JSON, or holds an impossible value.
    """
    path = os.path.join(folder, CONFIG)
    config = _json(path)
    if config is None or not isinstance(config.get("pretrained_cfg"), dict):
        return EMPTY
    trained = config["pretrained_cfg"]
    given = config.get("model_args")
    given = given if isinstance(given, dict) else {}
    shape = trained.get("input_size")
    size = shape[1:] if isinstance(shape, list) and len(shape) == 3 else None
    model = {"img_size": _pair(given.get("img_size")) or size, "num_heads": given.get("num_heads")}
    data = {key: trained.get(key) for key in ("mean", "std")}
    return parse({"model": model, "data": data}, path)


def official(args: Any, origin: str) -> tuple[Record, list[str]]:
    """From the ``args`` that the official code's training scripts store with the weights.

    Forks use the same names for other options, so impossible values are skipped.

    Returns:
        The record, and a sentence for each value that is not used.
    """
    values = args.state if type(args) is Placeholder else args
    if not isinstance(values, dict):
        return EMPTY, []
    model = {
        "img_size": _pair(values.get("input_size")),
        "mask_ratio": values.get("mask_ratio"),
        "norm_pix_loss": values.get("norm_pix_loss"),
    }
    kept = sound(model)
    notes = [
        f"{origin}: its args say {key} {value!r:.80}, which is not used"
        for key, value in model.items()
        if value is not None and key not in kept
    ]
    return Record(kept, {}, None, f"{origin} (args)"), notes


def _json(path: str) -> dict[str, Any] | None:
    if not os.path.isfile(path):
        return None
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not a configuration")
    return content


def _pair(size: Any) -> Any:
    """[height, width] from a size that may be one number."""
    return [size, size] if type(size) is int else size


def _channels(value: Any, config: Mapping[str, Any]) -> Any:
    """One value per channel, from a value that may be one number for all."""
    count = config.get("num_channels")
    return [value] * count if type(value) is float and count in (1, 3) else value


def _side(size: Any) -> Any:
    """One number from the size of a square, which may be two numbers."""
    return size[0] if isinstance(size, list) and len(size) == 2 and size[0] == size[1] else size


def _labels(id2label: Any) -> list[str] | None:
    """Names in order; None if transformers made them up."""
    if not isinstance(id2label, Mapping) or not id2label:
        return None
    names: list[Any] = [id2label.get(str(number)) for number in range(len(id2label))]
    made_up = [f"LABEL_{number}" for number in range(len(names))]
    return None if names == made_up or None in names else names
