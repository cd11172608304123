"""The training program, whose rank 1 loses its data after some reads, unless it is restarted."""

from __future__ import annotations

import errno
import os

from libai_ext.data import image_folder, retry
from libai_ext.engine import cli as entry
from libai_ext.launch.exit_report import restarted
from projects.MAE.train_net import main

READS = 40


class Losing:
    """``read_regular`` that reads no more."""

    def __init__(self):
        self.read, self.reads = image_folder.read_regular, 0

    def __call__(self, path, limit):
        self.reads += 1
        if self.reads > READS:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return self.read(path, limit)


if __name__ == "__main__":
    retry.RETRY_SECONDS = 0.2
    if os.environ["RANK"] == "1" and not restarted():
        image_folder.read_regular = Losing()
    entry.run(main)
