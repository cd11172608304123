"""Configs in YAML, with the check of what they may call."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator

import yaml
from guard import Target, expect
from omegaconf import OmegaConf

from libai_ext.config import lazy_config, safe_yaml
from libai_ext.errors import ConfigError


def _compare(path: Path, cfg: Any) -> None:
    """Dump the config and read it again; the comparison of texts treats NaN as equal."""
    content = safe_yaml.read(str(path))
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    expect(repr(safe_yaml.read(str(path))) == repr(content), "a dump of it is read as another")
    expect(repr(OmegaConf.to_container(cfg)) == repr(content), "OmegaConf makes another of it")


def _seeds(folder: Path) -> Iterator[bytes]:
    recipe = lazy_config.load("projects/MAE/configs/mae_digits_finetune.py")
    for key in recipe:  # small configs are read faster
        part = lazy_config.dump(OmegaConf.masked_copy(recipe, [str(key)]))
        if "${" not in part:
            yield part.encode()
    yield b"a: {b: [1, 2.5, .inf, ~, true, 'x', \"y\"], c: '${a.b.0}'}\nd: |-\n  text\n"


CONFIG = Target(
    name="config",
    seeds=_seeds,
    read=lambda path: lazy_config.load(str(path)),
    errors=(ConfigError,),
    compare=_compare,
    file="config.yaml",
    words=(
        b"${a}", b"${a.b}", b"${oc.env:HOME}", b"${oc.decode:", b"_target_: os.system", b"_target_",
        b"libai_ext.data.", b"projects.MAE.tasks.", b"!!python/object/apply:os.system", b"&a",
        b"*a", b"<<: ", b"---\n", b"%YAML 1.1\n", b"???", b"? ", b": ", b"- ", b"|\n", b">-\n",
        b"0x", b"0b", b"1:30", b"1_000", b".nan", b"-.inf", b"\\x", b"\\u", b"2001-01-01",
        b"\xef\xbb\xbf", b"\xff\xfe",
    ),
)  # fmt: skip

TARGETS = (CONFIG,)
