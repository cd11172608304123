"""What is known about a model besides its weights: sizes, heads, loss, preprocessing, classes.

As JSON, with the names of the config's keys:

    {"version": 1,
     "model": {"img_size": [32, 128], "num_heads": 6, "norm_pix_loss": true, ...},
     "data": {"mode": "RGB", "mean": [...], "std": [...], "transform": [...]},
     "classes": ["cat", "dog", ...]}

Unknown values are left out. ``target`` of a model is the class of what it predicts, if that is not
pixels; ``classes`` are the names of a classifier's outputs in order; ``transform`` is what
evaluation does with an image, a list of config nodes. A mode that is a number of channels comes
with ``divisors``, those of :mod:`libai_ext.data.channels`, and ``picture_channels``.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Mapping, Sequence

from omegaconf import DictConfig, OmegaConf

from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.config import safe_yaml
from libai_ext.data.channels import DIVISORS
from libai_ext.data.decode import MODES
from libai_ext.errors import ConfigError
from projects.MAE.modeling.sizes import ARCHS

MAX_SIZE = 1 << 20
_NAME = re.compile(r"[\w.]{1,200}", re.ASCII)


@dataclass(frozen=True)
class Record:
    """Attributes as in the JSON; ``origin`` says where it was found, for messages."""

    model: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    origin: str = ""

    def having(self, **model: Any) -> Record:
        """A copy with these keys of the model set."""
        return replace(self, model={**self.model, **model})

    def plain(self) -> dict[str, Any]:
        """As plain values for JSON."""
        content: dict[str, Any] = {"model": dict(self.model), "data": dict(self.data)}
        if self.classes is not None:
            content["classes"] = list(self.classes)
        return content


EMPTY = Record()


def _is_whole(value: Any) -> bool:
    return type(value) is int and 0 < value <= MAX_SIZE


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= MAX_SIZE


def _list_of(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and bool(value) and all(map(holds, value))


_WHOLE = ("a whole number above 0", _is_whole)
_SWITCH = ("true or false", lambda value: type(value) is bool)
# Key -> what its value must be, in words, and a check for it.
_MODEL = {
    "img_size": ("[height, width]", lambda value: _list_of(_is_whole)(value) and len(value) == 2),
    "patch_size": _WHOLE,
    "in_chans": _WHOLE,
    "embed_dim": _WHOLE,
    "depth": _WHOLE,
    "num_heads": _WHOLE,
    "mlp_ratio": ("a number above 0", lambda value: _is_number(value) and value > 0),
    "decoder_embed_dim": _WHOLE,
    "decoder_depth": _WHOLE,
    "decoder_num_heads": _WHOLE,
    "mask_ratio": ("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1),
    "norm_pix_loss": _SWITCH,
    "target": ("a name", lambda value: isinstance(value, str) and bool(_NAME.fullmatch(value))),
    "num_classes": _WHOLE,
    "pooling": ("mean or cls", lambda value: value in ("mean", "cls")),
    "batch_norm": _SWITCH,
}
_DATA = {
    "mode": (
        "RGB, L or a number of channels",
        lambda value: isinstance(value, str) and value in MODES or _is_whole(value),
    ),
    "as_torchvision": _SWITCH,
    "divisors": (f"{DIVISORS}, as in this version", lambda value: value == DIVISORS),
    "picture_channels": (
        "one or three whole numbers",
        lambda value: _list_of(lambda v: _is_whole(v) or v == 0)(value) and len(value) in (1, 3),
    ),
    "mean": ("a list of numbers", _list_of(_is_number)),
    "std": ("a list of numbers above 0", _list_of(lambda v: _is_number(v) and v > 0)),
    "transform": ("a list of transforms", _list_of(lambda value: isinstance(value, dict))),
}


def parse(content: Mapping[str, Any], origin: str) -> Record:
    """The record in plain JSON or YAML; keys that do not describe a model are skipped.

    Args:
        origin: where it was found.

    Raises:
        CheckpointError: a key has an impossible value; names both.
    """
    model = _checked(content.get("model"), _MODEL, f"{origin}: model")
    data = _checked(content.get("data"), _DATA, f"{origin}: data")
    classes = content.get("classes")
    if classes is None:
        return Record(model, data, None, origin)
    if not _list_of(lambda value: isinstance(value, str))(classes):
        raise CheckpointError(f"{origin}: classes is not a list of names")
    return Record(model, data, tuple(classes), origin)


def _checked(node: Any, rules: Mapping[str, tuple], where: str) -> dict[str, Any]:
    if node is None:
        return {}
    if not isinstance(node, dict):
        raise CheckpointError(f"{where} is not a group of keys")
    found = {key: node[key] for key in rules if node.get(key) is not None}
    for key, value in found.items():
        words, holds = rules[key]
        if not holds(value):
            raise CheckpointError(f"{where}.{key} must be {words}, not {value!r:.80}")
    return found


def sound(model: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of ``model`` whose values are possible."""
    return {key: value for key, value in model.items() if key in _MODEL and _MODEL[key][1](value)}


def of_config(cfg: DictConfig, classes: Sequence[str] | None = None) -> Record:
    """The record that a run's checkpoints store.

    Args:
        cfg: the run's config, resolved.
        classes: names of the head's outputs, in order.
    """
    data = _plain(cfg.get("data")) or {}
    transform = OmegaConf.select(cfg, "dataloader.test.dataset.transform.transforms")
    if type(data.get("mode")) is int:
        shown = _plain(OmegaConf.select(cfg, "task.picture_channels"))
        data.update(divisors=DIVISORS, picture_channels=shown)
    model = named_target(_plain(cfg.model))
    content: dict[str, Any] = {"model": model, "data": dict(data, transform=_plain(transform))}
    if classes:
        content["classes"] = list(classes)
    return parse(content, "the config")


def named_target(model: Mapping[str, Any]) -> dict[str, Any]:
    """The model's node with the class name of its target in place of the target."""
    target = model.get("target")
    name = target.get("_target_") if isinstance(target, dict) else target
    if callable(name):
        name = f"{name.__module__}.{name.__qualname__}"
    return {**model, "target": name}


def _plain(node: Any) -> Any:
    """As plain values for JSON; classes and functions by name."""
    if node is None:
        return None
    container = OmegaConf.to_container(node, resolve=True)
    return json.loads(json.dumps(container, default=lambda f: f"{f.__module__}.{f.__qualname__}"))


def of_run_config(path: str) -> Record:
    """The record from a run's ``config.yaml``, for checkpoints without one.

    Raises:
        CheckpointError: it is not plain YAML, or holds an impossible value.
    """
    try:
        content = safe_yaml.read_plain(path)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    model = content.get("model")
    if isinstance(model, dict):
        for key, value in ARCHS.get(str(model.get("arch")), {}).items():
            if model.get(key) is None and key in model:
                model[key] = list(value) if isinstance(value, tuple) else value
        if type(model.get("img_size")) is int:
            model["img_size"] = [model["img_size"]] * 2
        model = named_target(model)
    return parse({"model": model, "data": content.get("data")}, path)


def check(record: Record, sizes: Mapping[str, Any]) -> None:
    """Compare a record with the sizes of its tensors.

    Raises:
        CheckpointError: they differ; names both values of each.
    """
    differing = [key for key in sizes if differ(record.model.get(key), sizes[key])]
    if differing:
        lines = ", ".join(f"{key} {record.model[key]} (the tensors {sizes[key]})"
                          for key in differing)  # fmt: skip
        raise CheckpointError(f"{record.origin} is of another model: it says {lines}")


def differ(left: Any, right: Any) -> bool:
    """Whether two values contradict each other; None means unknown and contradicts nothing."""
    if left is None or right is None:
        return False
    if isinstance(left, float) or isinstance(right, float):
        return not math.isclose(left, right, rel_tol=1e-6)
    return (list(left) != list(right)) if isinstance(left, (list, tuple)) else left != right
