"""Read every file of a folder under limits, and report. Started by the hostile-file tests.

    python hostile_runner.py FOLDER MEGABYTES

Prints one JSON object per file: name, outcome (exception type, or "read"), message, CPU seconds
(of the longer one of two reads), and the audit events that reading has no business with.
"""

import contextlib
import json
import os
import resource
import sys
import time

from libai_ext.checkpoint import formats
from libai_ext.checkpoint.errors import CheckpointError
from projects.MAE.weights.files import read_weights
from projects.MAE.weights.packing import Heads

EVENTS = []
FORBIDDEN = ("exec", "compile", "import", "os.", "subprocess.", "ctypes.", "socket.", "shutil.",
             "pickle.", "marshal.", "code.", "builtins.", "webbrowser.", "pty.")  # fmt: skip
READS_ONLY = ("os.listdir", "os.scandir", "builtins.id")


def watch(event, arguments):
    if event == "open":
        _, mode, flags = arguments
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or (isinstance(mode, str) and set(mode) & set("wax+")):
            EVENTS.append(f"{event} {arguments!r:.200}")
    elif event.startswith(FORBIDDEN) and event not in READS_ONLY:
        EVENTS.append(f"{event} {arguments!r:.200}")


def read(path):
    """Outcome, message and seconds of `read_weights`; reading the whole tree first must not fail in
    another way."""
    seconds = []
    try:
        with contextlib.suppress(CheckpointError), timed(seconds):
            formats.load(path)
        with timed(seconds):
            read_weights(path, Heads(3, 2))
        return "read", "", max(seconds)
    except Exception as error:
        return type(error).__name__, str(error), max(seconds)


@contextlib.contextmanager
def timed(seconds):
    started = time.process_time()
    try:
        yield
    finally:
        seconds.append(time.process_time() - started)


def main():
    folder, megabytes = sys.argv[1], int(sys.argv[2])
    names = sorted(os.listdir(folder))
    read(os.path.join(folder, names[0]))  # imports what the first use imports
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    limit = used + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sys.addaudithook(watch)
    for name in names:
        del EVENTS[:]
        print(json.dumps([name, *read(os.path.join(folder, name)), EVENTS]))


if __name__ == "__main__":
    main()
