"""What comes out of a pickle besides tensors: plain containers, and placeholders for all else."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Callable, Tuple

if TYPE_CHECKING:
    from libai_ext.checkpoint.pickle_reader import PickleReader

Constructor = Callable[["PickleReader", Tuple[Any, ...]], Any]


@dataclass(eq=False)
class Placeholder:
    """What a file names but this reader does not build: inert, compared by identity.

    Attributes:
        module, name: the global that the file names, for example argparse, Namespace.
        args: the arguments that it would have been called with; None for the global itself.
        state: what would have been handed to its `__setstate__` or `__dict__`.
        items: what would have been appended to it or set in it.
    """

    module: str
    name: str
    args: tuple[Any, ...] | None = field(default=None, repr=False)
    state: Any = field(default=None, repr=False)
    items: list[Any] = field(default_factory=list, repr=False)


def dictionary_key(key: Any) -> Any:
    """The key itself where hashing it is cheap whatever the file says, else a placeholder."""
    plain = type(key) in (str, bytes, bool, type(None), Placeholder)
    if plain or (type(key) is int and -(2**63) <= key < 2**63):
        return key
    return Placeholder(type(key).__module__, type(key).__qualname__, (key,))


def ordered_dict(reader: PickleReader, args: tuple[Any, ...]) -> OrderedDict[Any, Any]:
    """collections.OrderedDict: empty (Python 3), or from a list of pairs (Python 2)."""
    result: OrderedDict[Any, Any] = OrderedDict()
    if args:
        (pairs,) = args
        if type(pairs) is not list:
            raise ValueError("an OrderedDict is not built from a list")
        reader.charge(len(pairs))
        for key, value in pairs:
            result[dictionary_key(key)] = value
    return result


def encode(reader: PickleReader, args: tuple[Any, ...]) -> bytes:
    """_codecs.encode(text, "latin1"): how protocol 2 spells bytes."""
    text, codec = args
    if type(text) is not str or codec != "latin1":
        raise ValueError("_codecs.encode of something that is not bytes in disguise")
    reader.charge(len(text))
    return text.encode("latin1")


PLAIN_CONSTRUCTORS: dict[tuple[str, str], Constructor] = {
    ("collections", "OrderedDict"): ordered_dict,
    ("_codecs", "encode"): encode,
}
