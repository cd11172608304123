"""Fuzz one target with atheris, in this process.

    python one.py TARGET CORPUS SCRATCH [option of libFuzzer ...]

The exit status is libFuzzer's: 0, or another one at the first finding.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Iterable

import atheris

# Packages whose branches count as coverage. ALSO: modules that Python or NumPy import earlier.
INSTRUMENTED = ["libai_ext", "yaml", "tarfile", "PIL", "checkpoint_targets"]
ALSO = ["json.decoder", "json.scanner", "numpy.lib.format", "zipfile", "asyncio.streams"]


def main() -> None:
    name, corpus, scratch, *options = sys.argv[1:]
    sys.modules.pop("tarfile", None)  # Python may have imported it without coverage
    with atheris.instrument_imports(include=INSTRUMENTED, enable_loader_override=False):
        from guard import Guard, limit_memory
        from table import find, findings, seeds

        target = find(name)
        guard = Guard(target, Path(scratch))
        inputs = seeds(target)
        guard.start(inputs)  # also instruments what readers import at first use
    for number, data in enumerate([*inputs, *findings(name)]):
        Path(corpus, f"seed-{number}").write_bytes(data)
    _instrument(sys.modules[name] for name in ALSO if name in sys.modules)
    words = Path(scratch, "words")
    words.write_text("".join(map(_dictionary_line, target.words)))
    limit_memory()

    def check(data: bytes) -> None:
        guard.check(data)

    atheris.Setup([sys.argv[0], corpus, f"-dict={words}", *options], check)
    atheris.Fuzz()  # ends the process


def _instrument(modules: Iterable[ModuleType]) -> None:
    for module in modules:
        classes = [value for value in vars(module).values() if inspect.isclass(value)]
        for value in (value for holder in (module, *classes) for value in vars(holder).values()):
            if inspect.isfunction(value) and value.__module__ == module.__name__:
                atheris.instrument_func(value)


def _dictionary_line(word: bytes) -> str:
    return '"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n'


if __name__ == "__main__":
    main()
