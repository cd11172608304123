"""Train and evaluate masked autoencoders: the one entry point.

bash tools/train.sh projects/MAE/train_net.py CONFIG N [--resume] [--eval-only] [key=value ...]
"""

from libai_ext.engine import cli as entry
from libai_ext.startup import start
from projects.MAE import former_names  # noqa: F401 (fills the table for messages)


def main() -> None:
    args = entry.parse_args(__doc__)
    start()
    # OneFlow must be initialised before anything that imports it.
    from projects.MAE.run import run

    run(args)


if __name__ == "__main__":
    entry.run(main)
