"""Runs the training program several times in one group of processes.

    python -m libai_ext.launch --nproc-per-node N many_runs.py COMMANDS.json

COMMANDS.json: a list of the program's command lines. The engine permits one layout after the
other, so that a table of cases needs a launch for each number of processes only.
"""

from __future__ import annotations

import gc
import json
import logging
import sys
from pathlib import Path

from libai_ext.engine import cli as entry
from projects.MAE import train_net


def program() -> None:
    # A graph of several ranks is freed by all of them together; collected at a different moment
    # by each, one would wait for the others for ever.
    gc.disable()
    for command in json.loads(Path(sys.argv[1]).read_text()):
        for name in ("libai", "libai_ext", "projects"):
            logging.getLogger(name).handlers.clear()  # they write to the previous run's folder
        sys.argv[1:] = command
        train_net.main()


if __name__ == "__main__":
    entry.run(program)
