"""The training program on a machine whose files about hardware are those of the folder
``OTHER_ROOT``."""

import os
from pathlib import Path

from libai_ext import device
from libai_ext.engine import cli as entry
from projects.MAE.train_net import main

if __name__ == "__main__":
    device.ROOT = Path(os.environ["OTHER_ROOT"])
    entry.run(main)
