"""The console commands of the package: each runs the script of the same name."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

_HERE = Path(__file__).resolve().parent
# Next to this file in an installed package, at the top of a checkout.
TOOLS = next(path for path in (_HERE / "tools", _HERE.parents[1] / "tools") if path.is_dir())
TRAIN_NET = _HERE / "train_net.py"


def tool() -> NoReturn:
    """``mae-check-gpu ...``: ``tools/check_gpu.py ...``, and so on."""
    name = Path(sys.argv[0]).name[len("mae-") :].replace("-", "_")
    _become(str(TOOLS / f"{name}.py"), *sys.argv[1:])


def train() -> NoReturn:
    """``mae-train CONFIG N ...``: what ``tools/train.sh`` does with ``train_net.py``."""
    parser = argparse.ArgumentParser(
        prog="mae-train",
        usage="mae-train [--restarts N] CONFIG N [options] [key=value ...]",
        description="Train on N processes, one a GPU; the variables NODE, NODE_RANK, ADDR, PORT "
        "and HOSTFILE are for several machines.",
        epilog="The options of training: mae-train CONFIG 1 --help",
    )
    parser.add_argument("--restarts", default="0", help="how often to go on after a crash")
    parser.add_argument("config", help="a file, or the name of a recipe such as mae_digits")
    parser.add_argument("processes", metavar="N")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS).required = False
    args = parser.parse_args()
    launch = ("-m", "libai_ext.launch", "--nproc-per-node", args.processes)
    program = (str(TRAIN_NET), "--config-file", args.config)
    _become(*launch, "--restarts", args.restarts, *program, *args.rest)


def _become(*arguments: str) -> NoReturn:
    """Replace this process by Python with other arguments, for signals and the exit status."""
    os.execv(sys.executable, [sys.executable, *arguments])
