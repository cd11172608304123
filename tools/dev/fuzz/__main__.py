"""Fuzz the readers of what strangers may send, guided by coverage.

    .venv/bin/python tools/dev/fuzz [TARGET ...] [--seconds N] [--runs N] [--folder FOLDER]

Each target is fuzzed by atheris in a process of its own, as many at once as there are cores, from
inputs that real programs wrote and those of tests/fuzz/findings. An input may be read, or refused
by the error that the reader documents, which names the file. Anything else is a finding, and so is
an input that takes long or much memory, runs or writes something, or that a second reader reads in
another way. Exit status 1 at a finding: its input lies in FOLDER/TARGET then, and belongs into
tests/fuzz/findings/TARGET once the reader is mended.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from table import MODULES

ROOT = Path(__file__).resolve().parents[3]
# Of one input, on a clock on which other programs take their time, too.
_TIMEOUT = 60


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(MODULES)}")
    parser.add_argument("--seconds", type=int, default=600, help="for each target (600)")
    parser.add_argument("--runs", type=int, default=-1, help="at most so many inputs a target")
    parser.add_argument(
        "--folder", type=Path, help="for the inputs that reach something new; another run goes on"
    )
    args = parser.parse_args()
    unknown = set(args.targets) - set(MODULES)
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    folder = args.folder or Path(tempfile.mkdtemp(prefix="fuzzed-"))
    options = [f"-max_total_time={args.seconds}", f"-runs={args.runs}"]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        jobs = [
            pool.submit(_fuzz, name, folder / name, options) for name in args.targets or MODULES
        ]
    return max(job.result() for job in jobs)


def _fuzz(name: str, folder: Path, options: list[str]) -> int:
    """Prints one line; also the end of what libFuzzer says at a finding."""
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    options = [f"-timeout={_TIMEOUT}", "-seed=1", f"-artifact_prefix={folder}/", *options]
    one = Path(__file__).with_name("one.py")
    began = time.monotonic()
    # With PYTHONHASHSEED a run can be repeated.
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        command = [sys.executable, str(one), name, str(corpus), scratch, *options]
        result = subprocess.run(
            command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    seconds = time.monotonic() - began
    log = result.stdout.decode("utf-8", "replace")
    (folder / "log").write_text(log)
    steps = re.findall(r"^#(\d+)\t.* cov: (\d+) ", log, re.MULTILINE) or [("0", "0")]
    found = "no finding" if result.returncode == 0 else f"A FINDING: input and log in {folder}"
    print(
        f"{name}: {steps[-1][0]} inputs in {seconds:.0f} s, branches {steps[0][1]} -> "
        f"{steps[-1][1]}, {found}",
        flush=True,
    )
    if result.returncode != 0:
        print("\n".join(log.splitlines()[-40:]), flush=True)
    return int(result.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
