"""What must be true for every input of every target, made by any program."""

from __future__ import annotations

import codecs
import os
import resource
import sys
import time
import unicodedata  # noqa: F401, see _ENCODINGS
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator

# CPU seconds for one input, and bytes in addition to those of the process before the first input.
MAX_SECONDS = 5.0
MAX_MEMORY = 700 << 20

# Audit events of programs, imports, sockets and writing to files.
_FORBIDDEN = (
    "exec", "compile", "import", "os.", "subprocess.", "ctypes.", "socket.", "shutil.",
    "pickle.", "marshal.", "code.", "builtins.", "webbrowser.", "pty.",
)  # fmt: skip
_HARMLESS = ("os.listdir", "os.scandir", "builtins.id")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT

# Python itself imports these encodings at their first use, in any reader.
_ENCODINGS = "unicode_escape utf-8-sig utf-16 utf-16-le utf-16-be utf-32 utf-32-le utf-32-be"
for _encoding in _ENCODINGS.split():
    codecs.lookup(_encoding)


class Finding(AssertionError):
    """A reader broke a rule."""


def expect(agree: bool, what: str) -> None:
    """
    Raises:
        Finding: two readings differ.
    """
    if not agree:
        raise Finding(what)


def _lay_file(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _nothing(path: Path, result: Any) -> None:
    """There is no second reading."""


@dataclass(frozen=True)
class Target:
    """One reader of files or lines that strangers may have made.

    Attributes:
        name: on the command line, and of the folder with its findings.
        seeds: valid inputs, made by the programs that write such files; gets a scratch folder.
        read: reads the file or folder at a path.
        errors: the errors that ``read`` may raise; each must name the path.
        lay: writes an input to the path.
        compare: reads a second time in another way; raises :class:`Finding` at a difference.
        file: name of the file or folder.
        words: bytes with a meaning in the format, for the mutations.
        may: audit events that reading needs.
    """

    name: str
    seeds: Callable[[Path], Iterable[bytes]]
    read: Callable[[Path], Any]
    errors: tuple[type[Exception], ...]
    lay: Callable[[Path, bytes], None] = _lay_file
    compare: Callable[[Path, Any], None] = _nothing
    file: str = "input"
    words: tuple[bytes, ...] = ()
    may: tuple[str, ...] = ()


_events: list[tuple[str, str]] = []
_watched = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watched:
        return
    if event == "open":
        _, mode, flags = arguments
        forbidden = flags & _WRITING or isinstance(mode, str) and set(mode) & set("wax+")
    else:
        forbidden = event.startswith(_FORBIDDEN) and event not in _HARMLESS
    if forbidden:
        _events.append((event, f"{event} {arguments!r:.200}"))


sys.addaudithook(_hook)  # it cannot be removed


@contextmanager
def _watch(wanted: bool) -> Iterator[None]:
    global _watched
    _events.clear()
    _watched = wanted
    try:
        yield
    finally:
        _watched = False


def limit_memory() -> None:
    """Limit this process to :data:`MAX_MEMORY` more than it has now."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (used + MAX_MEMORY, hard))


class Guard:
    """Gives inputs to a target and checks the results.

    Args:
        folder: scratch folder; holds the input while it is read.
    """

    def __init__(self, target: Target, folder: Path):
        self.target = target
        self.path = folder / target.file
        self.watchful = False

    def start(self, sound: Iterable[bytes]) -> None:
        """Read valid inputs, so that readers do their imports; then start to watch audit events.

        Raises:
            Finding: an input is refused.
        """
        for data in sound:
            expect(self.check(data), f"{self.target.name}: the sound input {data!r:.80} is refused")
        self.watchful = True

    def check(self, data: bytes) -> bool:
        """Whether an input is read, not refused.

        Raises:
            Finding: it takes long, runs or writes something, a second reading differs, or the error
                does not name the file.
            Exception: any other error of the reader, which is a finding, too.
        """
        self.target.lay(self.path, data)
        started = time.process_time()
        result, error = None, None
        with _watch(self.watchful):
            try:
                result = self.target.read(self.path)
            except self.target.errors as raised:
                error = raised
        seconds = time.process_time() - started
        expect(seconds <= MAX_SECONDS, f"it takes {seconds:.1f} s")
        events = [text for event, text in _events if event not in self.target.may]
        expect(not events, f"it does what reading does not need: {events}")
        if error is not None:
            expect(str(self.path) in str(error), f"the error does not name the file: {error}")
            return False
        self.target.compare(self.path, result)
        return True
