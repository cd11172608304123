"""Python's own unpickler, limited to plain values, as a second reader of pickles."""

from __future__ import annotations

import io
import pickle
from typing import Any

from libai_ext.checkpoint.plain import Placeholder

_PLAIN_KEYS = (str, bytes, bool, int, type(None))


class NotCompared(Exception):
    """Python would hash or call an object that our reader stores unchanged."""


class _Other:
    """Stands for everything that a global or a persistent id names."""

    def __new__(cls, *args: Any, **keywords: Any) -> _Other:
        return object.__new__(cls)

    def __init__(self, *args: Any, **keywords: Any):
        pass

    def _take(self, *args: Any) -> None:
        pass

    __setstate__ = append = extend = add = __setitem__ = _take


_Python: Any = pickle._Unpickler


class _Unpickler(_Python):
    dispatch = dict(_Python.dispatch)

    def find_class(self, module: str, name: str) -> type:
        return type("_Any", (_Other,), {})

    def persistent_load(self, identifier: Any) -> _Other:
        return _Other()

    def load_setitem(self) -> None:
        _check_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self) -> None:
        _check_keys(self.stack[::2])
        super().load_setitems()

    def refuse(self) -> None:
        raise NotCompared

    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.FROZENSET[0]] = dispatch[pickle.ADDITEMS[0]] = refuse


def _check_keys(keys: list[Any]) -> None:
    if any(type(key) not in _PLAIN_KEYS for key in keys):
        raise NotCompared


def loads(data: bytes) -> Any:
    """
    Raises:
        NotCompared: the values cannot be compared.
        Exception: any error of Python's unpickler.
    """
    return _Unpickler(io.BytesIO(data), encoding="utf-8").load()


def same(ours: Any, theirs: Any) -> bool:
    """Whether our reader and :func:`loads` gave the same; a placeholder equals everything."""
    return _same(ours, theirs, set())


def _same(ours: Any, theirs: Any, seen: set[tuple[int, int]]) -> bool:
    if (id(ours), id(theirs)) in seen or isinstance(theirs, _Other):
        return True
    seen.add((id(ours), id(theirs)))
    if type(ours) is dict:
        if any(type(key) is Placeholder for key in ours):
            return True
        return (
            type(theirs) is dict
            and list(ours) == list(theirs)
            and all(_same(ours[key], theirs[key], seen) for key in ours)
        )
    if type(ours) in (list, tuple):
        return (
            type(theirs) is type(ours)
            and len(ours) == len(theirs)
            and all(_same(first, second, seen) for first, second in zip(ours, theirs))
        )
    if type(ours) not in (str, bytes, bool, int, float, type(None)):
        return True
    return repr(ours) == repr(bytes(theirs) if type(theirs) is bytearray else theirs)
