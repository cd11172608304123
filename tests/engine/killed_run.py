"""The training program, whose rank 1 is killed after three iterations, unless it is restarted."""

from __future__ import annotations

import os
import signal

from libai_ext.engine import cli as entry
from libai_ext.engine.trainer import Trainer
from libai_ext.launch.exit_report import restarted
from projects.MAE.train_net import main

after_step = Trainer.after_step


def die(trainer) -> None:
    after_step(trainer)
    if trainer.done == 3:
        trainer.checkpointer.finish()  # on all ranks
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    if not restarted():
        Trainer.after_step = die
    entry.run(main)
