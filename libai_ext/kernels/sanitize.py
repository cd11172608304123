"""Run the kernels' arithmetic under sanitizers: `python -m libai_ext.kernels.sanitize [FLAG...]`.

OneFlow itself cannot run under them, so this compiles `csrc/check/sanitize.cpp`, which calls the
arithmetic directly, with the address and undefined-behaviour sanitizers of g++. A flag such as
`-march=x86-64` leaves out instructions: other code replaces them and is checked.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from libai_ext.kernels.build import ARITHMETIC_FLAGS, SOURCE_DIR, find_compiler


def main() -> int:
    compiler = find_compiler()
    if compiler is None:
        print("no C++ compiler found", file=sys.stderr)
        return 1
    # With less optimization it compiles in a third of the time.
    flags = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g"]
    source = SOURCE_DIR / "check" / "sanitize.cpp"
    with tempfile.TemporaryDirectory() as work:
        program = Path(work) / "sanitize"
        flags += [*sys.argv[1:], str(source), "-o", str(program)]
        subprocess.run([compiler, *ARITHMETIC_FLAGS, *flags], check=True)
        return subprocess.run([str(program)], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
