"""The opcodes of the binary pickle protocols: what each does to the reader's stack and memo."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable

if TYPE_CHECKING:
    from libai_ext.checkpoint.pickle_reader import PickleReader


def _set(reader: PickleReader) -> None:
    reader.push_placeholder("builtins", "set", ())


def _frozen_set(reader: PickleReader) -> None:
    reader.push_placeholder("builtins", "frozenset", (reader.pop_to_mark(),))


HANDLERS: dict[int, Callable[[PickleReader], Any]] = {
    0x80: lambda r: r.number("<B"),  # PROTO: the opcodes show the protocol
    0x95: lambda r: r.number("<Q"),  # FRAME: a hint for streams
    # Constants and numbers
    ord("N"): lambda r: r.push(None),
    0x88: lambda r: r.push(True),
    0x89: lambda r: r.push(False),
    ord("I"): lambda r: r.push(int(r.line())),  # Python 2, beyond 32 bits
    ord("J"): lambda r: r.push(r.number("<i")),
    ord("K"): lambda r: r.push(r.number("<B")),
    ord("M"): lambda r: r.push(r.number("<H")),
    0x8A: lambda r: r.push(r.big_integer(r.number("<B"))),
    0x8B: lambda r: r.push(r.big_integer(r.number("<i"))),
    ord("G"): lambda r: r.push(r.number(">d")),
    # Text and bytes
    0x8C: lambda r: r.push(r.text("<B")),
    ord("X"): lambda r: r.push(r.text("<I")),
    0x8D: lambda r: r.push(r.text("<Q")),
    ord("U"): lambda r: r.push(r.python2_str("<B")),
    ord("T"): lambda r: r.push(r.python2_str("<I")),
    ord("C"): lambda r: r.push(r.take(r.number("<B"))),
    ord("B"): lambda r: r.push(r.take(r.number("<I"))),
    0x8E: lambda r: r.push(r.take(r.number("<Q"))),
    0x96: lambda r: r.push(r.take(r.number("<Q"))),
    # Containers
    ord(")"): lambda r: r.push(()),
    ord("t"): lambda r: r.push(tuple(r.pop_to_mark())),
    0x85: lambda r: r.push(r.last(1)),
    0x86: lambda r: r.push(r.last(2)),
    0x87: lambda r: r.push(r.last(3)),
    ord("]"): lambda r: r.push([]),
    ord("a"): lambda r: r.append(list(r.last(1))),
    ord("e"): lambda r: r.append(r.pop_to_mark()),
    ord("}"): lambda r: r.push({}),
    ord("s"): lambda r: r.set_items(list(r.last(2))),
    ord("u"): lambda r: r.set_items(r.pop_to_mark()),
    0x8F: _set,
    0x90: lambda r: r.append(r.pop_to_mark()),
    0x91: _frozen_set,
    # Stack and memo
    ord("("): lambda r: r.mark(),
    ord("0"): lambda r: r.pop_or_mark(),
    ord("1"): lambda r: r.pop_to_mark(),
    ord("h"): lambda r: r.get(r.number("<B")),
    ord("j"): lambda r: r.get(r.number("<I")),
    ord("q"): lambda r: r.put(r.number("<B")),
    ord("r"): lambda r: r.put(r.number("<I")),
    0x94: lambda r: r.memoize(),
    # Objects
    ord("c"): lambda r: r.push_placeholder(r.line(), r.line()),
    0x93: lambda r: r.stack_global(),
    ord("R"): lambda r: r.reduce(),
    0x81: lambda r: r.reduce(),
    0x92: lambda r: r.new_object_with_keywords(),
    ord("o"): lambda r: r.old_style_instance(),
    ord("b"): lambda r: r.build(),
    ord("Q"): lambda r: r.persistent(r.pop()),
}
