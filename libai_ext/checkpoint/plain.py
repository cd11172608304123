"""What a pickle holds other than tensors: plain containers, placeholders for other objects."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Callable, Iterator, Tuple

from libai_ext.checkpoint.errors import CheckpointError

if TYPE_CHECKING:
    from libai_ext.checkpoint.pickle_reader import PickleReader

MAX_NESTING = 64
COPIED_PER_STEP = 64  # copied bytes that count as one step

Constructor = Callable[["PickleReader", Tuple[Any, ...]], Any]


@dataclass(eq=False)
class Placeholder:
    """Inert stand-in for an object of another type; compared by identity.

    Attributes:
        module, name: of the global in the file, for example argparse, Namespace.
        args: arguments of its call; None for the global itself.
        state: argument of `__setstate__`, or the `__dict__`.
        items: items that were appended or set.
    """

    module: str
    name: str
    args: tuple[Any, ...] | None = field(default=None, repr=False)
    state: Any = field(default=None, repr=False)
    items: list[Any] = field(default_factory=list, repr=False)


def dictionary_key(key: Any) -> Any:
    """The key if hashing it is always cheap, else a placeholder."""
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
    """_codecs.encode(text, "latin1"): bytes in protocol 2."""
    text, codec = args
    if type(text) is not str or codec != "latin1":
        raise ValueError("_codecs.encode of something that is not bytes in disguise")
    reader.charge(len(text) // COPIED_PER_STEP)
    return text.encode("latin1")


PLAIN_CONSTRUCTORS: dict[tuple[str, str], Constructor] = {
    ("collections", "OrderedDict"): ordered_dict,
    ("_codecs", "encode"): encode,
}


def map_leaves(tree: Any, convert: Callable[[Any], Any]) -> Any:
    """Rebuild nested containers with converted leaves. Shared objects are converted once and stay
    shared. A `Placeholder` is a leaf.

    Raises:
        CheckpointError: containers hold themselves, or are nested too deep for a checkpoint.
    """
    return _build(tree, 0, convert, {})


# Not a nested function: it would refer to itself, and its data would wait for garbage collection.
def _build(node: Any, depth: int, convert: Callable[[Any], Any], built: dict[int, Any]) -> Any:
    if id(node) in built:
        return built[id(node)]
    if depth > MAX_NESTING:
        raise CheckpointError(f"containers are nested more than {MAX_NESTING} deep")
    if isinstance(node, dict):
        result: Any = type(node)()
        for key, value in node.items():
            result[key] = _build(value, depth + 1, convert, built)
    elif isinstance(node, (list, tuple)):
        result = type(node)(_build(item, depth + 1, convert, built) for item in node)
    else:
        result = convert(node)
    built[id(node)] = result
    return result


def total(tree: Any, size: Callable[[Any], int]) -> int:
    """The sum of the leaves' sizes. Shared leaves count each time, but `size` is called once.

    Raises:
        CheckpointError: containers hold themselves, or are nested too deep for a checkpoint.
    """
    sums: dict[int, int] = {}
    map_leaves(tree, lambda leaf: sums.setdefault(id(leaf), size(leaf)))
    return _sum(tree, sums)


def _sum(node: Any, sums: dict[int, int]) -> int:
    if id(node) not in sums:
        inner = node.values() if isinstance(node, dict) else node
        sums[id(node)] = sum(_sum(item, sums) for item in inner)
    return sums[id(node)]


def dictionary_keys(tree: Any) -> Iterator[Any]:
    """The keys of all dictionaries in nested containers, each container visited once."""
    seen: set[int] = set()
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if id(node) in seen or not isinstance(node, (dict, list, tuple)):
            continue
        seen.add(id(node))
        if isinstance(node, dict):
            yield from node
        waiting.extend(node.values() if isinstance(node, dict) else node)
