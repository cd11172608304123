"""Run the kernels' arithmetic under sanitizers: `python -m libai_ext.kernels.sanitize`.

OneFlow itself cannot run under them, so this compiles `csrc/check/sanitize.cpp`, which calls the
arithmetic directly, with the address and undefined-behaviour sanitizers of g++.
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
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g"]
    source = SOURCE_DIR / "check" / "sanitize.cpp"
    with tempfile.TemporaryDirectory() as work:
        program = Path(work) / "sanitize"
        command = [compiler, *ARITHMETIC_FLAGS, *sanitizers, str(source), "-o", str(program)]
        subprocess.run(command, check=True)
        return subprocess.run([str(program)], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
