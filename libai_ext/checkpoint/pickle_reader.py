"""A pickle interpreter that builds plain data only.

Python's unpickler imports and calls what a file names. Restricting it (`find_class`) does not
protect memory and time: a memo index of 2**31 allocates gigabytes, and a tuple that holds itself
twice, fifty levels deep, takes forever to hash. This interpreter imports and calls nothing, and has
one budget for all steps and copies.

Format: the `pickletools` module documents every opcode. This module supports those of the binary
protocols (1 to 5, Python 2 included), which `torch.save` writes.
"""

from __future__ import annotations

import struct
from typing import Any, Callable

from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.checkpoint.pickle_opcodes import HANDLERS
from libai_ext.checkpoint.plain import (
    COPIED_PER_STEP,
    PLAIN_CONSTRUCTORS,
    Constructor,
    Placeholder,
    dictionary_key,
)

STOP = ord(".")

# A ViT-H with its optimizer state takes 60,000 steps, of one or a few microseconds each.
MAX_STEPS = 300_000
# Longer numbers take too long to parse or to hash, and no checkpoint has them.
MAX_INTEGER_BYTES = 256
MAX_LINE = 512
PLACEHOLDER_COST = 5


class PickleReader:
    """Interprets one pickle inside `data`, starting at `position`.

    Args:
        data: bytes or a memory map.
        position: where the pickle starts; after `load`, where it ended.
        constructors: (module, name) -> function to call for that global, added to those of plain
            containers; every other global becomes a `Placeholder`.
        persistent_load: builds the object of a persistent id.
        steps: the limit; :data:`COPIED_PER_STEP` copied bytes count as one step.
        python2_bytes: read a Python 2 str as bytes; else as text, as torch.load does.
    """

    def __init__(
        self,
        data: Any,
        position: int = 0,
        constructors: dict[tuple[str, str], Constructor] | None = None,
        persistent_load: Callable[[Any], Any] | None = None,
        steps: int = MAX_STEPS,
        python2_bytes: bool = False,
    ):
        self.position = position
        self._data = data
        self._constructors = {**PLAIN_CONSTRUCTORS, **(constructors or {})}
        self._persistent_load = persistent_load
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._steps = self._budget = steps
        self._python2_bytes = python2_bytes

    def load(self) -> Any:
        """Interpret up to STOP and return the object.

        Raises:
            CheckpointError: the pickle is malformed, truncated or costs too much.
        """
        data = self._data
        try:
            while True:
                self.charge(1)
                opcode = data[self.position]
                self.position += 1
                if opcode == STOP:
                    return self._stack.pop()
                handler = HANDLERS.get(opcode)
                if handler is None:
                    raise ValueError(f"opcode 0x{opcode:02x} is not allowed in a checkpoint")
                handler(self)
        except CheckpointError:
            raise
        except (IndexError, struct.error):
            raise self._malformed("it ends early or its stack is empty") from None
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise self._malformed(str(error)) from None

    def charge(self, cost: int) -> None:
        """Take `cost` steps or copied elements off the budget."""
        self._budget -= cost
        if self._budget < 0:
            raise CheckpointError(
                f"the pickle takes more than {self._steps:,} steps, which no such file needs"
            )

    def _malformed(self, why: str) -> CheckpointError:
        return CheckpointError(f"malformed pickle near byte {self.position}: {why}")

    # Reading arguments

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        if count > len(self._data) - self.position:
            raise IndexError
        self.charge(count // COPIED_PER_STEP)
        self.position += count
        return self._data[self.position - count : self.position]

    def number(self, layout: str) -> Any:
        """The next number, as `struct` describes it."""
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def text(self, length_layout: str) -> str:
        """The next text; its length comes first."""
        return self.take(self.number(length_layout)).decode("utf-8", "surrogatepass")

    def python2_str(self, length_layout: str) -> str | bytes:
        """The next str of Python 2; its length comes first."""
        content = self.take(self.number(length_layout))
        return content if self._python2_bytes else content.decode("utf-8", "surrogatepass")

    def line(self) -> str:
        """The text up to the next newline."""
        end = self._data.find(b"\n", self.position, self.position + MAX_LINE)
        if end < 0:
            raise IndexError
        text = self._data[self.position : end]
        self.position = end + 1
        return text.decode("utf-8")

    def big_integer(self, length: int) -> int:
        """The next `length` bytes as a signed integer."""
        if not 0 <= length <= MAX_INTEGER_BYTES:
            raise ValueError(f"an integer of {length} bytes")
        return int.from_bytes(self.take(length), "little", signed=True)

    # The stack and the memo

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def push_placeholder(self, module: str, name: str, args: Any = None) -> None:
        self.charge(PLACEHOLDER_COST)
        self.push(Placeholder(module, name, args))

    def pop(self) -> Any:
        return self._stack.pop()

    def top(self) -> Any:
        return self._stack[-1]

    def last(self, count: int) -> tuple[Any, ...]:
        """Pop `count` objects."""
        if len(self._stack) < count:
            raise IndexError
        items = tuple(self._stack[-count:])
        del self._stack[-count:]
        return items

    def mark(self) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def pop_to_mark(self) -> list[Any]:
        """What was pushed since the last mark."""
        items = self._stack
        self._stack = self._marks.pop()
        return items

    def pop_or_mark(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self.pop_to_mark()

    def put(self, index: int) -> None:
        self._memo[index] = self.top()

    def get(self, index: int) -> None:
        if index not in self._memo:
            raise ValueError(f"nothing in the memo at {index}")
        self.push(self._memo[index])

    def memoize(self) -> None:
        self.put(len(self._memo))

    # Objects

    def reduce(self) -> None:
        """Call a known constructor; only record any other call."""
        args = self.pop()
        callee = self.pop()
        if type(args) is not tuple or type(callee) is not Placeholder:
            raise ValueError("REDUCE of something that is not a global with a tuple")
        constructor = None
        if callee.args is None:
            constructor = self._constructors.get((callee.module, callee.name))
        if constructor is not None:
            self.push(constructor(self, args))
        else:
            self.push_placeholder(callee.module, callee.name, args)

    def new_object_with_keywords(self) -> None:
        keywords = self.pop()
        self.reduce()
        self.push(keywords)
        self.build()

    def old_style_instance(self) -> None:
        """OBJ: an instance of an old-style class of Python 2."""
        callee, *args = self.pop_to_mark()
        self.push(callee)
        self.push(tuple(args))
        self.reduce()

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if type(name) is not str or type(module) is not str:
            raise ValueError("the name of a global is not text")
        self.push_placeholder(module, name)

    def build(self) -> None:
        """Record the state of a placeholder; the attributes of a dictionary are ignored."""
        state = self.pop()
        target = self.top()
        if type(target) is Placeholder and target.args is not None:
            target.state = state
        elif not isinstance(target, dict):
            raise ValueError(f"BUILD of a {type(target).__name__}")

    def persistent(self, identifier: Any) -> None:
        if self._persistent_load is None:
            raise ValueError("a persistent id where none belongs")
        self.push(self._persistent_load(identifier))

    # Containers

    def append(self, items: list[Any]) -> None:
        target = self.top()
        if type(target) is Placeholder and target.args is not None:
            target.items.extend(items)
        elif type(target) is list:
            target.extend(items)
        else:
            raise ValueError(f"APPEND to a {type(target).__name__}")

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        keys, values = items[::2], items[1::2]
        if len(keys) != len(values):
            raise ValueError("a dictionary key without a value")
        if type(target) is Placeholder and target.args is not None:
            target.items.extend(zip(keys, values))
        elif isinstance(target, dict):
            for key, value in zip(keys, values):
                target[dictionary_key(key)] = value
        else:
            raise ValueError(f"SETITEM of a {type(target).__name__}")
