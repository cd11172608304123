"""Log messages: rank 0's go to the standard output, each rank's to its own file."""

from __future__ import annotations

import logging

from libai.utils import distributed as dist
from libai.utils.logger import setup_logger

from libai_ext.engine.log_file import LogFile, log_file
from libai_ext.text import masked, printable_lines

# ``extra`` of a message for the files alone: the terminal has a progress bar.
FILES_ONLY = "files_only"


def set_up_logs(output_dir: str | None) -> None:
    """Write the log of this project and LiBai to ``output_dir/log.txt`` as well, if given, and no
    longer to that of an earlier run of this process.

    LiBai's own log files use the locale's encoding, which cannot write every file name, and its
    loggers do not escape control characters in them.
    """
    rank = dist.get_rank()
    file = None if output_dir is None else log_file(output_dir, rank)
    for name in ("libai", "libai_ext", "projects"):
        root = setup_logger(None, distributed_rank=rank, name=name, abbrev_name="")
        for handler in list(root.handlers):
            if isinstance(handler, LogFile):
                root.removeHandler(handler)
                handler.close()
            elif not isinstance(handler, logging.FileHandler):  # the terminal
                handler.addFilter(_is_for_terminal)
        if file is not None:
            root.addHandler(file)
        for handler in root.handlers:
            handler.addFilter(_escape)
    # LiBai also logs the exceptions that libai_ext.engine.cli reports.
    logging.getLogger("libai.engine.trainer").setLevel(logging.CRITICAL)


def _escape(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable_lines(masked(record.getMessage())), None
    return True


def _is_for_terminal(record: logging.LogRecord) -> bool:
    return not getattr(record, FILES_ONLY, False)
