"""Training in which rank 1 stands for ever at iteration STAND_AT (a variable) of the first attempt.
Rank 0 prints each task that is watched: what | seconds to its report | and to its end."""

from __future__ import annotations

import os
import time

from libai_ext.engine import cli as entry
from libai_ext.launch import deadlines
from libai_ext.launch.exit_report import restarted
from libai_ext.startup import start


def main() -> None:
    iteration = int(os.environ["STAND_AT"])
    args = entry.parse_args(__doc__)
    start()
    from projects.MAE.run import TaskTrainer, run

    next_batch, begin = TaskTrainer.next_batch, deadlines.begin

    def stand(self):
        if self.iter == iteration and os.environ["RANK"] == "1" and not restarted():
            time.sleep(600)
        return next_batch(self)

    def note(what, report=0, end=0, note=""):
        begin(what, report, end, note)
        print(f"task: {what} | {report:.0f} | {end:.0f}", flush=True)

    TaskTrainer.next_batch = stand
    if os.environ["RANK"] == "0":
        deadlines.begin = note
    run(args)


if __name__ == "__main__":
    entry.run(main)
