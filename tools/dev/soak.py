"""Kill training runs at random moments, resume them, and compare with runs left alone.

    .venv/bin/python tools/dev/soak.py [--kills N] [--processes 1 2] [--folder FOLDER]
    .venv/bin/python tools/dev/soak.py --faults [STEP]
    .venv/bin/python tools/dev/soak.py --iterations N

Small jobs on made images, pre-training and fine-tuning, are killed by SIGKILL, every third time
inside a save, and resumed; every third time one data worker or one rank is stopped, terminated or
killed instead, and the job has to end by itself. After several kills a job may end. Then its
weights, optimizer state, metrics and TensorBoard steps must be those of the job that nobody killed,
to the bit, and no process or file may be left. After every kill each checkpoint must be whole. With
--faults nothing is random and nothing is trained: every operation on the disk of saving and pruning
fails in turn, see tools/dev/disk_faults. With --iterations one job runs that long, and its memory,
files and processes are watched. Exit status 1 when anything differs.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import tempfile
from pathlib import Path

from disk_faults.build import enumerate_faults
from soak_runs.job import started
from soak_runs.kills import kill_test
from soak_runs.memory import watch


def main() -> int:
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of each restart
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--faults", type=int, nargs="?", const=1, metavar="STEP", help="of the disk, every STEP-th"
    )
    parser.add_argument("--iterations", type=int, help="watch one job of so many instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep what the runs leave, here")
    args = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        try:
            if args.faults:
                good = enumerate_faults(folder, args.faults)
            elif args.iterations:
                good = watch(folder, args.iterations)
            else:
                good = kill_test(folder, args.kills, args.processes, args.seed)
        finally:
            for launcher in started:
                launcher.kill()  # its ranks end with it
                launcher.wait()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
