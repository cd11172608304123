"""The command line of a training program: options, errors, exit status."""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import os
import signal
import sys
import time
import traceback
from typing import Callable

from libai_ext.config import targets
from libai_ext.config.names import from_elsewhere
from libai_ext.errors import ConfigError, DataUnavailable, UserError
from libai_ext.launch.exit_report import (
    DATA_UNAVAILABLE,
    SAVED_ON_SIGNAL,
    USAGE_ERROR,
    out_of_memory,
    report_failure,
    report_finished,
)
from libai_ext.text import printable_lines

# For the last messages of the engine to arrive before their sender leaves.
_ARRIVAL_SECONDS = 0.5


def parse_args(description: str) -> argparse.Namespace:
    """LiBai's options, ``--print-config`` and ``--dry-run``."""
    parser = _Parser(description=description, allow_abbrev=False)
    parser.add_argument("--config-file", required=True, metavar="FILE", help=".py or .yaml")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument(
        "--start-over", action="store_true", help="keep the earlier run in output_dir aside"
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate and stop")
    parser.add_argument(
        "--fast-dev-run", action="store_true", help="a few iterations, in output_dir/fast_dev_run"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check and build all, run one step, write nothing"
    )
    parser.add_argument(
        "--print-config", action="store_true", help="show the resolved config and stop"
    )
    add_allow_targets(parser)
    parser.add_argument("opts", nargs="*", metavar="key=value", help="config overrides")
    args = parser.parse_intermixed_args()
    for modes in (("resume", "start_over", "fast_dev_run"), ("dry_run", "fast_dev_run")):
        chosen = [f"--{mode.replace('_', '-')}" for mode in modes if getattr(args, mode)]
        if len(chosen) > 1:
            raise ConfigError(f"{' and '.join(chosen)} exclude each other")
    return args


def add_allow_targets(parser: argparse.ArgumentParser) -> None:
    """The option of every program that reads configs."""
    parser.add_argument(
        "--allow-targets",
        action=_Allow,
        metavar="PACKAGE",
        help="let YAML configs and overrides call what this package of yours defines",
    )


def run(program: Callable[[], None]) -> None:
    """Run ``program`` and leave the process: status 2 and one message for what a user can mend,
    74 and one for data that are away at present, 1 and a traceback for anything else.

    Leaves by ``os._exit``, and while the exception is still held: a rank that raises would
    otherwise wait for its peers when its graphs are freed, and the launcher for it, for ever.
    """
    sys.stdout.reconfigure(errors="backslashreplace")  # a name of a file may be no UTF-8
    try:
        program()
        # A graph is freed by all ranks together: no rank may collect one while others leave.
        gc.disable()
        _meet_peers(0)
        _leave(0)
    except SystemExit as error:  # --help, or saved on a signal or for want of data
        if error.code in (SAVED_ON_SIGNAL, DATA_UNAVAILABLE):
            _meet_peers(error.code)
        _leave(error.code if isinstance(error.code, int) else 1)
    except BaseException as error:
        _leave(_report(error))


def _leave(status: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # the terminal is gone
            stream.flush()
    os._exit(status)


def _meet_peers(status: int) -> None:
    """Wait until every rank has come to its end, and leave together: the engine aborts in ranks
    that notice that a peer has left, by a message that did not come or by a heartbeat."""
    if "oneflow" in sys.modules:
        sys.modules["oneflow"].comm.barrier()
        report_finished(status)
        # From here on neither an abort nor Ctrl-C is worth a word.
        faulthandler.disable()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if os.environ.get("WORLD_SIZE", "1") != "1":
            time.sleep(_ARRIVAL_SECONDS)


def _report(error: BaseException) -> int:
    """Hand the error to the launcher, which shows the first one of all ranks at the end."""
    memory = out_of_memory(str(error))
    if isinstance(error, DataUnavailable):
        status, text = DATA_UNAVAILABLE, f"error: {error}\n"
    elif isinstance(error, UserError):
        status, text = USAGE_ERROR, f"error: {error}\n"
    elif memory:
        status, text = USAGE_ERROR, memory
    else:
        lines = traceback.format_exception(type(error), error, error.__traceback__)
        status, text = 1, "".join([f"rank {os.environ.get('RANK', 0)} failed:\n", *lines])
    text = printable_lines(text)
    if not report_failure(text):
        print(text, end="", file=sys.stderr)
    return status


class _Allow(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        targets.allow(values)


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        # "unrecognized arguments: --blr"
        names = [word.partition("=")[0] for word in message.split() if word.startswith("-")]
        told = [f"{name}{from_elsewhere(name)}" for name in names if from_elsewhere(name)]
        raise ConfigError("; ".join([*told, message, "--help lists the options"]))
