"""The command line of a training program: options, errors, exit status."""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import io
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

# For the last messages of the engine to arrive before their sender exits.
_ARRIVAL_SECONDS = 0.5


def parse_args(description: str) -> argparse.Namespace:
    """LiBai's options, ``--print-config`` and ``--dry-run``."""
    parser = _Parser(description=description, allow_abbrev=False)
    parser.add_argument("--config-file", required=True, metavar="FILE", help=".py or .yaml")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    parser.add_argument(
        "--start-over", action="store_true", help="move the earlier run in output_dir aside"
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate and exit")
    parser.add_argument(
        "--fast-dev-run", action="store_true", help="a few iterations, in output_dir/fast_dev_run"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check all, run one step, write nothing"
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved config and exit"
    )
    add_allow_targets(parser)
    parser.add_argument("opts", nargs="*", metavar="key=value", help="config overrides")
    args = parser.parse_intermixed_args()
    for modes in (("resume", "start_over", "fast_dev_run"), ("dry_run", "fast_dev_run")):
        chosen = [f"--{mode.replace('_', '-')}" for mode in modes if getattr(args, mode)]
        if len(chosen) > 1:
            raise ConfigError(f"{' and '.join(chosen)} cannot be combined: leave one out")
    return args


def add_allow_targets(parser: argparse.ArgumentParser) -> None:
    """Add the option to a program that reads configs."""
    parser.add_argument(
        "--allow-targets",
        action=_Allow,
        metavar="PACKAGE",
        help="allow YAML configs and overrides to call this package of yours",
    )


def run(program: Callable[[], None]) -> None:
    """Run ``program`` and exit: with status 2 and one message for an error in the config, data or
    device, 74 and one message for data that cannot be read for the present, 130 for Ctrl-C, 1 and
    a traceback for any other error. ``sys.exit`` means what it does in Python.

    It exits by ``os._exit`` while it still holds the exception. Otherwise a rank that fails would
    free its graphs, and wait forever for its peers to do so.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name may not be UTF-8
    try:
        program()
        # All ranks must free a graph together: no rank may collect one while others exit.
        gc.disable()
        _wait_for_peers(0)
        _exit(0)
    except SystemExit as error:  # --help, or saved after a signal or without data
        status = _exit_status(error.code)
        if status in (SAVED_ON_SIGNAL, DATA_UNAVAILABLE):
            _wait_for_peers(status)
        _exit(status)
    except KeyboardInterrupt:
        _exit(128 + signal.SIGINT)
    except BaseException as error:
        _exit(_report(error))


def _exit_status(code) -> int:
    """Of ``sys.exit(code)``, where None means success and a text is an error message."""
    if code is None or isinstance(code, int):
        return code or 0
    _show(f"{code}\n")
    return 1


def _exit(status: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # the terminal is gone
            stream.flush()
    os._exit(status)


def _wait_for_peers(status: int) -> None:
    """Barrier: all ranks exit together, since the engine aborts a rank that loses a peer."""
    if "oneflow" in sys.modules:
        sys.modules["oneflow"].comm.barrier()
        report_finished(status)
        # An abort or Ctrl-C does no harm from here on: print nothing about it.
        faulthandler.disable()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if os.environ.get("WORLD_SIZE", "1") != "1":
            time.sleep(_ARRIVAL_SECONDS)


def _report(error: BaseException) -> int:
    """Report the error to the launcher, which shows the first one of all ranks at the end."""
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
    _show(text)
    return status


def _show(text: str) -> None:
    """Once of all ranks: the launcher does it, if there is one."""
    text = printable_lines(text)
    if not report_failure(text):
        print(text, end="", file=sys.stderr)


class _Allow(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        targets.allow(values)


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        # "unrecognized arguments: --blr"
        names = [part.partition("=")[0] for part in message.split() if part.startswith("-")]
        hints = [f"{name}{from_elsewhere(name)}" for name in names if from_elsewhere(name)]
        raise ConfigError("; ".join([*hints, message, "--help lists the options"]))
