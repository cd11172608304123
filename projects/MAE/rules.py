"""The allowed values for the keys of MAE configs, besides the keys that every run has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Sequence

from omegaconf import DictConfig

from libai_ext.config import lazy_config, values
from libai_ext.config.rule_types import each, either, number, one_of, switch, text, whole
from libai_ext.config.rules import RULES as COMMON
from libai_ext.config.rules import check, complete
from libai_ext.errors import ConfigError
from projects.MAE import former_names  # noqa: F401 (fills the table for messages)

_SIZE = whole(1, unset=True)


def _mode(text: str) -> Any:
    """A name, or a number of channels."""
    return int(text) if re.fullmatch("[0-9]{1,6}", text) else values.text(text)


RULES = {
    "model.arch": text(),
    "model.in_chans": whole(1),
    "model.mask_ratio": number(0, 1),
    "model.norm_pix_loss": switch,
    "model.target.bins": whole(2),
    "model.target.cell": whole(1),
    "model.target.weights": text(),
    "model.img_size": either(_SIZE, each(whole(1), length=2)),
    "model.patch_size": _SIZE,
    "model.embed_dim": _SIZE,
    "model.depth": _SIZE,
    "model.num_heads": _SIZE,
    "model.decoder_embed_dim": _SIZE,
    "model.decoder_depth": _SIZE,
    "model.decoder_num_heads": _SIZE,
    "model.mlp_ratio": number(0, above=True),
    "model.num_classes": whole(1),
    "model.pooling": one_of("mean", "cls"),
    "model.drop_path": number(0, 1, below=True),
    "model.head_std": number(0, above=True),
    "model.init": one_of("timm", "pretraining"),
    "model.batch_norm": switch,
    "model.n_partial": number(0, unset=True),
    "task.picture_period": whole(0),
    "task.picture_samples": whole(1),
    "task.picture_channels": each(whole(0), unset=True),
    "task.per_class": switch,
    "task.confusion": switch,
    "task.predictions": switch,
    "task.classes": text(unset=True),
    "finetune.enable": switch,
    "finetune.path": text(unset=True),
    "data.train": each(text()),
    "data.test": each(text(), unset=True),
    "data.mode": either(one_of("RGB", "L"), whole(1))._replace(reads=_mode),
    "data.mean": each(number()),
    "data.std": each(number(0, above=True)),
    "data.max_bad_share": number(0, 1),
    "data.download": switch,
    "data.as_torchvision": switch,
    "data.reduce_jpegs": switch,
    "data.cache_dir": text(unset=True),
    "data.cache_gib": number(0, above=True),
}
RECIPES = Path(__file__).resolve().parent / "configs"
# Keys that version 0.1 did not have: a config with its own ``data`` may lack them.
_NEWER = {"data": dict(reduce_jpegs=False, cache_dir=None, cache_gib=32.0)}
# Keys of the width and the number of heads of the same layers.
_HEADS = (("embed_dim", "num_heads"), ("decoder_embed_dim", "decoder_num_heads"))


def read_config(
    config_file: str, opts: Sequence[str], notes: list[str] | None = None
) -> DictConfig:
    """Read and check a config with ``key=value`` overrides; nothing is derived.

    Args:
        config_file: see :func:`find_recipe`.
        notes: a sentence is added on which keys got their defaults.

    Raises:
        ConfigError: there is no such config, or no run can use it.
    """
    cfg = lazy_config.load(find_recipe(config_file))
    missing = complete(cfg, _NEWER)
    if notes is not None:
        notes += missing
    lazy_config.override(cfg, opts, {**COMMON, **RULES})
    check_config(cfg)
    return cfg


def find_recipe(name: str) -> str:
    """The path of a config. If there is no file ``name``, names like ``mae_digits`` and
    ``projects/MAE/configs/mae_digits.py`` stand for the recipes that come with this code.

    Raises:
        ConfigError: there is no such file or recipe.
    """
    path = Path(name)
    if lazy_config.is_file(name):
        return name
    recipe = RECIPES / f"{path.name[:-3] if path.suffix == '.py' else path.name}.py"
    if path.parent in (Path(), Path("projects/MAE/configs")) and recipe.is_file():
        return str(recipe)
    known = ", ".join(sorted(file.stem for file in RECIPES.glob("mae_*.py")))
    raise ConfigError(f"config file {name} does not exist, nor is it one of the recipes {known}")


def check_config(cfg: DictConfig) -> None:
    """Refuse values that no run can use, before anything is derived from them.

    Raises:
        ConfigError: names the keys.
    """
    check(cfg, RULES, called=("task",))
    data, channels = cfg.get("data"), cfg.model.get("in_chans")
    if data is None or channels is None:
        return
    if channels != {"RGB": 3, "L": 1}.get(data.mode, data.mode):
        raise ConfigError(f"model.in_chans {channels} does not go with data.mode {data.mode}")
    for key in ("mean", "std"):
        if len(data[key]) != channels:
            raise ConfigError(
                f"data.{key} has {len(data[key])} values for model.in_chans {channels} channels"
            )
    shown = cfg.task.get("picture_channels") if "task" in cfg else None
    if shown is not None and (len(shown) not in (1, 3) or max(shown) >= channels):
        raise ConfigError(
            f"task.picture_channels {list(shown)} must be one or three of the channels 0 to "
            f"{channels - 1}"
        )


def check_heads(model: DictConfig) -> None:
    """Refuse heads that do not divide the width, and widths without a position table. The sizes of
    the arch must be filled in.

    Raises:
        ConfigError: names the keys.
    """
    for width, heads in _HEADS:
        if model.get(width) and model.get(heads) and model[width] % model[heads]:
            raise ConfigError(
                f"model.{width} {model[width]} is not divisible by model.{heads} {model[heads]}"
            )
        if model.get(width) and model[width] % 4:
            raise ConfigError(
                f"model.{width} {model[width]} is not divisible by 4: a position table has sines "
                "and cosines of rows and columns"
            )
