"""Kill training runs at random times, resume them, and compare with uninterrupted runs.

    .venv/bin/python tools/dev/soak.py [--kills N] [--processes 1 2] [--folder FOLDER]
    .venv/bin/python tools/dev/soak.py --faults [STEP]
    .venv/bin/python tools/dev/soak.py --iterations N

Small jobs on generated images, pre-training and fine-tuning, are killed by SIGKILL and resumed.
Every third kill is inside a save. Every third time, one data worker or one rank is stopped,
terminated or killed instead, and the job has to end by itself. After several kills a job may end.
Then its weights, optimizer state, metrics and TensorBoard steps must equal those of an
uninterrupted job, to the bit, and no process or file may be left. After every kill each checkpoint
must be valid. With --faults, nothing is random and nothing is trained: every disk operation of
saving and pruning fails in turn, see tools/dev/disk_faults. With --iterations, one job runs so
long, and its memory, files and processes are monitored. Exit status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import tempfile
from pathlib import Path

from disk_faults.build import enumerate_faults
from soak_runs.job import end_all
from soak_runs.kills import kill_test
from soak_runs.memory import monitor


def main() -> int:
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it reports each restart
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--faults", type=int, nargs="?", const=1, metavar="STEP", help="every STEP-th operation"
    )
    parser.add_argument("--iterations", type=int, help="monitor one job of so many instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep the files of the runs here")
    args = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        try:
            if args.faults:
                good = enumerate_faults(folder, args.faults)
            elif args.iterations:
                good = monitor(folder, args.iterations)
            else:
                good = kill_test(folder, args.kills, args.processes, args.seed)
        finally:
            end_all()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
