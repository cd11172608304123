"""Configs as YAML: mappings, lists, plain values and references to other keys, nothing else.

A file may be hostile. It is checked before anything is resolved: no tags, no anchors, only
``${key}`` as interpolation, and a limited size.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from libai_ext.errors import ConfigError

MAX_BYTES = 2**18
MAX_DEPTH = 20
MAX_TEXT = 4096
# Values and characters after every reference is replaced by its value.
MAX_RESOLVED = 2**16
_REFERENCE = re.compile(r"\$\{([A-Za-z_]\w*(?:\.\w+)*)\}")
# Without the surrogates that stand for bytes of file names that are not UTF-8.
_UNUSABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udc7f\udd00-\udfff]")


def read(path: str) -> dict[str, Any]:
    """Read the mapping in a file; references stay text.

    Raises:
        ConfigError: it cannot be read or holds something else; names the file and the key.
    """
    content = read_plain(path)
    try:
        _check(content)
    except ConfigError as error:
        raise ConfigError(f"config file {path}: {error}") from None
    return content


def read_plain(path: str) -> dict[str, Any]:
    """The same for a file whose texts are never resolved: references are not checked.

    Raises:
        ConfigError: it cannot be read or holds something else; names the file.
    """
    try:
        return _parse(_text(path))
    except (ConfigError, yaml.YAMLError, ValueError) as error:
        plain = "" if isinstance(error, ConfigError) else "not plain YAML: "
        raise ConfigError(f"config file {path}: {plain}{error}") from None


def check_texts(value: Any, key: str) -> None:
    """Refuse interpolations other than ``${key}``, control characters, and ``???`` (OmegaConf's
    mark of a missing value), also inside a value.

    Raises:
        ConfigError: names the key.
    """
    if isinstance(value, dict):
        for name, inner in value.items():
            check_texts(inner, f"{key}.{name}")
    elif isinstance(value, (list, tuple)):
        for position, inner in enumerate(value):
            check_texts(inner, f"{key}.{position}")
    elif isinstance(value, str):
        if "${" in _REFERENCE.sub("", value) or "\\${" in value:
            raise ConfigError(f"{key}: of interpolations only ${{key}} is read, not {value!r}")
        if _UNUSABLE.search(value):
            raise ConfigError(f"{key} holds a control character: {value!r}")
        if value == "???":
            raise ConfigError(f"{key} has no value")


def _text(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"larger than {MAX_BYTES // 1024} KiB: this is no config")
    return data.decode("utf-8")


def _parse(text: str) -> dict[str, Any]:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        where = f"line {event.start_mark.line + 1}"  # type: ignore[union-attr]  # of a parsed text
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise ConfigError(f"{where}: more than {MAX_DEPTH} levels deep: this is no config")
        if isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            raise ConfigError(f"{where}: anchors and aliases are not read; write ${{key}} instead")
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise ConfigError(f"{where}: tags such as {tag} are not plain YAML")
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > MAX_TEXT:
            raise ConfigError(f"{where}: a value of more than {MAX_TEXT} characters")
    content = yaml.load(text, Loader=_Loader)
    if not isinstance(content, dict):
        raise ConfigError("must hold a mapping at its top")
    return content


class _Loader(yaml.SafeLoader):
    """Reads dates and merge keys as text, and refuses duplicate keys."""

    yaml_implicit_resolvers = {
        first: [pair for pair in pairs if not pair[0].endswith((":timestamp", ":merge", ":value"))]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            line = f"line {key.start_mark.line + 1}"
            if key.tag != "tag:yaml.org,2002:str" or not key.value.isidentifier():
                raise ConfigError(f"{line}: a key must be a name")
            if key.value in seen:
                raise ConfigError(f"{line}: the key '{key.value}' is there twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _check(content: dict[str, Any]) -> None:
    for key, value in content.items():
        check_texts(value, key)
    expansion = _Expansion(content)
    for key, value in content.items():
        expansion.walk(value, key)


class _Expansion:
    """Walks a config as if each reference were replaced by its value."""

    def __init__(self, content: dict[str, Any]):
        self.content = content
        self.spent = 0
        self.open: list[str] = []

    def walk(self, node: Any, key: str) -> None:
        self.spent += 1 + len(node) if isinstance(node, str) else 1
        if self.spent > MAX_RESOLVED:
            raise ConfigError(f"{key}: too large with what is referred to: this is no config")
        if isinstance(node, dict):
            for name, value in node.items():
                self.walk(value, f"{key}.{name}")
        elif isinstance(node, list):
            for position, value in enumerate(node):
                self.walk(value, f"{key}.{position}")
        elif isinstance(node, str):
            self._walk_text(node, key)

    def _walk_text(self, text: str, key: str) -> None:
        for name in _REFERENCE.findall(text):
            if name in self.open or len(self.open) == MAX_DEPTH:
                chain = " -> ".join([*self.open, name])
                raise ConfigError(f"{key}: the references {chain} do not end")
            self.open.append(name)
            self.walk(self._find(name, key), name)
            self.open.pop()

    def _find(self, name: str, key: str) -> Any:
        node: Any = self.content
        for part in name.split("."):
            try:
                node = node[int(part)] if isinstance(node, list) else node[part]
            except (KeyError, IndexError, TypeError, ValueError):
                raise ConfigError(f"{key} refers to {name}, which is not there") from None
        return node
