"""One run at a time writes into an output folder.

The lock is the file ``run.lock`` in it, with the host, process and time of who holds it. Whether
its holder still lives shows in two ways:

- The kernel keeps a lock on the file (``fcntl``) and drops it with the process: on the machine of
  the holder, and on others where the file system passes such locks on. It is held: refused, at
  once. It is not, and the holder had it on this machine since its last boot: the holder is dead.
- The holder sets the file's time every ``BEAT_SECONDS``, for machines and file systems without
  common locks. A file whose time moves is held. One whose time stands still for ``STALE_SECONDS``
  is left over; who finds it watches it for that long, less the time it has been so already.

So no crash, power loss or lost machine leaves a lock that somebody has to remove. A holder that
stood still for longer than that (a suspended machine) finds another's name in the file and leaves
at once.
"""

from __future__ import annotations

import datetime
import errno
import fcntl
import json
import logging
import os
import secrets
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from libai_ext.errors import ConfigError
from libai_ext.launch.exit_report import USAGE_ERROR, report_failure

LOCK = "run.lock"
BEAT_SECONDS = 5
STALE_SECONDS = 120
# Of the file: written at once and never cut, so that a reader finds one holder or none.
_SIZE = 512
_HELD = (errno.EACCES, errno.EAGAIN)
# For a holder that has made the file to write its name into it.
_NAMING_SECONDS = 2

logger = logging.getLogger(__name__)


class RunLock:
    """Held from its making until :meth:`release`, or the end of the process.

    Args:
        folder: an output folder, which exists.

    Raises:
        ConfigError: another run holds it.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.path = Path(folder, LOCK)
        self.holder = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "started": datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
            "boot": _boot(),
            "kernel_lock": True,
            "token": secrets.token_hex(8),
        }
        self._file = None
        while self._file is None:
            self._file = self._take()
        self._released = threading.Event()
        self._beats = threading.Thread(target=self._beat, daemon=True)
        self._beats.start()

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *error) -> None:
        self.release()

    def release(self) -> None:
        """Remove the file; another run may start."""
        self._released.set()
        self._beats.join()
        if self._is_mine():
            self.path.unlink()
        os.close(self._file)

    def _take(self) -> int | None:
        """The file, open and signed; None where it changed meanwhile: to be tried again."""
        file, made = self._open()
        if file is None:
            return None
        try:
            self.holder["kernel_lock"] = self._kernel_lock(file)
            if self._is_there(file) and (made or self._is_left_over(file)):
                content = json.dumps(self.holder).ljust(_SIZE - 1) + "\n"
                os.pwrite(file, content.encode(), 0)
                os.fsync(file)
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)
        return None

    def _open(self) -> tuple[int | None, bool]:
        """The file, None if it has just gone, and whether it was made here."""
        flags = os.O_RDWR | os.O_NOFOLLOW
        try:
            return os.open(self.path, flags | os.O_CREAT | os.O_EXCL, 0o644), True
        except FileExistsError:
            pass
        try:
            return os.open(self.path, flags), False
        except FileNotFoundError:
            return None, False

    def _kernel_lock(self, file: int) -> bool:
        """False where the file system has no such locks.

        Raises:
            ConfigError: another process has it.
        """
        try:
            # Not flock(): a data worker that outlives its rank would hold on to it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno in _HELD:
                raise self._in_use(file) from None
            return False

    def _is_left_over(self, file: int) -> bool:
        """Whether the holder is dead; False where it has just left.

        Raises:
            ConfigError: it lives, or the file is something else.
        """
        if os.fstat(file).st_size not in (0, _SIZE):
            raise ConfigError(f"{self.path} is not the lock of a run: give it another name")
        former = _read(file)
        ours = former.get("boot") == self.holder["boot"] and former.get("kernel_lock")
        if self.holder["kernel_lock"] and (ours or not former):
            return True
        seen = os.fstat(file).st_mtime_ns
        left = max(2 * BEAT_SECONDS, STALE_SECONDS - max(0, self._age(seen)))
        logger.warning(f"{self.path}: {_name(former)} may still run; waiting up to {left:.0f} s")
        deadline = time.monotonic() + left
        while time.monotonic() < deadline:
            time.sleep(min(1, BEAT_SECONDS))
            if not self._is_there(file):
                return False
            if os.stat(self.path).st_mtime_ns != seen:
                raise self._in_use(file)
        return True

    def _age(self, written: int) -> float:
        """Seconds since a time in ns, by the clock of the file system."""
        with tempfile.TemporaryFile(dir=self.path.parent) as probe:
            return (os.fstat(probe.fileno()).st_mtime_ns - written) / 1e9

    def _is_there(self, file: int) -> bool:
        """Whether the path leads to the file that is open here. It is not opened again: closing
        it would give up the kernel's lock."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(file))
        except FileNotFoundError:
            return False

    def _is_mine(self) -> bool:
        return self._is_there(self._file) and _read(self._file) == self.holder

    def _in_use(self, file: int) -> ConfigError:
        deadline = time.monotonic() + _NAMING_SECONDS
        while not _read(file) and time.monotonic() < deadline:
            time.sleep(0.05)
        return ConfigError(
            f"train.output_dir {self.path.parent} is in use by {_name(_read(file))}: wait for its "
            "end or stop it, or give another train.output_dir"
        )

    def _beat(self) -> None:
        # The first one soon: another run may have found the same lock left over.
        wait = min(1, BEAT_SECONDS)
        while not self._released.wait(wait):
            wait = BEAT_SECONDS
            try:
                if self._is_mine():
                    os.utime(self._file)
                elif self.path.exists():
                    self._leave()
                else:
                    self._make_again()
            except ConfigError:
                self._leave()
            except OSError as error:
                logger.warning(f"{self.path}: {error.strerror}")

    def _make_again(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self._take()
        if file is not None:
            os.close(self._file)
            self._file = file
            logger.warning(f"{self.path} was removed while the run is on: made again")

    def _leave(self) -> None:
        """The other run writes here now: nothing may be saved any more."""
        with open(self.path, "rb", buffering=0) as file:
            other = _read(file.fileno())
        text = (
            f"error: {self.path.parent} was taken over by {_name(other)}, since this run stood "
            f"still for more than {STALE_SECONDS} s\n"
        )
        if not report_failure(text):
            print(text, end="", file=sys.stderr, flush=True)
        os._exit(USAGE_ERROR)


def _read(file: int) -> dict[str, Any]:
    """Who holds a lock; empty where the file does not say."""
    try:
        content = json.loads(os.pread(file, _SIZE, 0))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _name(holder: dict[str, Any]) -> str:
    if not holder:
        return "a run that has not said its name"
    host, process, started = (repr(holder.get(key))[:60] for key in ("host", "process", "started"))
    return f"the run of process {process} on host {host}, started {started}"


def _boot() -> str:
    """Another one on each machine, after each start of it."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
