"""The training program, whose rank 1 loses its data after some reads, unless it is restarted."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from libai_ext.data import image_folder, patience
from libai_ext.engine import main as entry
from libai_ext.failure import restarted
from projects.MAE.train_net import main

READS = 40


class LosingPath(type(Path())):
    reads = 0

    def read_bytes(self):
        LosingPath.reads += 1
        if LosingPath.reads > READS:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))
        return super().read_bytes()


if __name__ == "__main__":
    patience.RETRY_SECONDS = 0.2
    if os.environ["RANK"] == "1" and not restarted():
        image_folder.Path = LosingPath
    entry.run(main)
