"""Where log messages go: rank 0's to the standard output, each rank's to a file of its own."""

from __future__ import annotations

import logging

from libai.utils import distributed as dist
from libai.utils.logger import setup_logger

from libai_ext.engine.log_file import log_file
from libai_ext.text import printable_lines

# ``extra`` of a message that a terminal shows in another way.
FILES_ONLY = "files_only"


def set_up_logs(output_dir: str | None) -> None:
    """Write what this project and LiBai log to ``output_dir/log.txt`` as well; None: nowhere.

    LiBai's own log files are in the locale's encoding, which cannot write every name of a file, and
    its loggers pass on what such names do to a terminal.
    """
    rank = dist.get_rank()
    for name in ("libai", "libai_ext", "projects"):
        root = setup_logger(None, distributed_rank=rank, name=name, abbrev_name="")
        for handler in root.handlers:  # the terminal
            handler.addFilter(_not_shown_otherwise)
        if output_dir is not None:
            root.addHandler(log_file(output_dir, rank))
        for handler in root.handlers:
            handler.addFilter(_fit_to_be_shown)
    # It logs the exceptions that libai_ext.engine.cli reports.
    logging.getLogger("libai.engine.trainer").setLevel(logging.CRITICAL)


def _fit_to_be_shown(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable_lines(record.getMessage()), None
    return True


def _not_shown_otherwise(record: logging.LogRecord) -> bool:
    return not getattr(record, FILES_ONLY, False)
