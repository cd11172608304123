"""Fuzz the readers of files and lines from strangers, guided by coverage.

    .venv/bin/python tools/dev/fuzz [TARGET ...] [--seconds N] [--runs N] [--folder FOLDER]

atheris fuzzes each target in its own process, one process per core at a time. It starts from inputs
that real programs wrote and those in tests/fuzz/findings. A reader may read an input, or refuse it
by the error that it documents, which names the file. Anything else is a finding: also an input that
takes much time or memory, runs or writes something, or gives another result in a second reader.
Exit status 1 at a finding: its input is in FOLDER/TARGET then. Move it to
tests/fuzz/findings/TARGET once the reader is fixed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from table import MODULES

ROOT = Path(__file__).resolve().parents[3]
# Seconds for one input, including the time that other programs take.
_TIMEOUT = 60


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(MODULES)}")
    parser.add_argument("--seconds", type=int, default=600, help="for each target (600)")
    parser.add_argument("--runs", type=int, default=-1, help="at most so many inputs a target")
    parser.add_argument(
        "--folder", type=Path, help="for the inputs that reach something new; another run goes on"
    )
    args = parser.parse_intermixed_args()
    unknown = set(args.targets) - set(MODULES)
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    folder = args.folder or Path(tempfile.mkdtemp(prefix="fuzzed-"))
    options = [f"-max_total_time={args.seconds}", f"-runs={args.runs}"]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        jobs = [
            pool.submit(_fuzz, name, folder / name, options) for name in args.targets or MODULES
        ]
        # Printed by this thread alone: the lines of several would run into each other.
        for job in as_completed(jobs):
            print(job.result()[1], flush=True)
    return max(job.result()[0] for job in jobs)


def _fuzz(name: str, folder: Path, options: list[str]) -> tuple[int, str]:
    """Fuzz one target: (exit status, a line about it, at a finding also the end of libFuzzer's
    log)."""
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    options = [f"-timeout={_TIMEOUT}", "-seed=1", f"-artifact_prefix={folder}/", *options]
    one = Path(__file__).with_name("one.py")
    began = time.monotonic()
    # PYTHONHASHSEED makes a run repeatable.
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        command = [sys.executable, str(one), name, str(corpus), scratch, *options]
        result = subprocess.run(
            command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    seconds = time.monotonic() - began
    log = result.stdout.decode("utf-8", "replace")
    (folder / "log").write_text(log)
    # A library may have left the line before without an end.
    steps = re.findall(r"#(\d+)\t.* cov: (\d+) ", log) or [("0", "0")]
    # Also code that ends the process is a finding, though without an error.
    passed = result.returncode == 0 and re.search(r"Done \d+ runs in \d+ second", log) is not None
    found = "no finding" if passed else f"A FINDING: input and log in {folder}"
    lines = [
        f"{name}: {steps[-1][0]} inputs in {seconds:.0f} s, branches {steps[0][1]} -> "
        f"{steps[-1][1]}, {found}"
    ]
    if not passed:
        lines += log.splitlines()[-40:]
    return int(not passed), "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
