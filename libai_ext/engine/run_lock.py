"""One run at a time writes into an output folder.

The lock is the file ``run.lock`` there, with host, process and start of its holder. Two signs show
whether the holder still runs:

- A kernel lock on the file (``fcntl``), which ends with the process. It works on the holder's
  machine, and on others if the file system shares such locks. If it is held, a second run is
  refused at once. If it is free, and the holder took it on this machine since the last boot, the
  holder is dead.
- A heartbeat, for machines without shared locks: the holder sets the file's time every
  ``HEARTBEAT_SECONDS``. A file whose time changes is held. A file whose time has not changed for
  ``STALE_SECONDS`` is stale; a second run waits for the rest of that time.

So nobody has to remove a lock after a crash, a power loss or the loss of a machine. A holder that
was suspended for longer finds another holder in the file and exits at once.
"""

from __future__ import annotations

import contextlib
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
HEARTBEAT_SECONDS = 5
STALE_SECONDS = 120
# Of the file. It is written at once and never truncated: a reader finds one holder or none.
_SIZE = 512
_HELD = (errno.EACCES, errno.EAGAIN)
# For a holder that has made the file but not yet written it.
_NAMING_SECONDS = 2

logger = logging.getLogger(__name__)


class RunLock:
    """Held until :meth:`release` or the end of the process.

    Args:
        folder: an existing output folder.

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
        file = self._take()
        while file is None:
            file = self._take()
        self._file: int = file
        self._released = threading.Event()
        self._heartbeats = threading.Thread(target=self._send_heartbeats, daemon=True)
        self._heartbeats.start()

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *error) -> None:
        self.release()

    def release(self) -> None:
        """Remove the file; another run may start. An error of the disk is logged: the run itself
        has ended in its own way."""
        self._released.set()
        self._heartbeats.join()
        try:
            if self._is_mine():
                self.path.unlink()
        except OSError as error:
            logger.warning(f"{self.path} cannot be removed: {error.strerror}")
        with contextlib.suppress(OSError):  # it is closed even so
            os.close(self._file)

    def _take(self) -> int | None:
        """The open file with this holder in it; None: the file has changed, try again."""
        file, made = self._open()
        if file is None:
            return None
        try:
            self.holder["kernel_lock"] = self._kernel_lock(file)
            if self._is_current(file) and (made or self._is_stale(file)):
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
        """The file (None: it was just removed), and whether this call made it."""
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
        """Take it; False if the file system has no such locks.

        Raises:
            ConfigError: another process holds it.
        """
        try:
            # Not flock(): a data worker that outlives its rank would keep it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno in _HELD:
                raise self._in_use(file) from None
            return False

    def _is_stale(self, file: int) -> bool:
        """Wait until the lock is stale: True; False if the holder removes it.

        Raises:
            ConfigError: the holder runs, or the file is not a lock.
        """
        if os.fstat(file).st_size not in (0, _SIZE):
            raise ConfigError(f"{self.path} is not the lock of a run: rename it")
        former = _read(file)
        ours = former.get("boot") == self.holder["boot"] and former.get("kernel_lock")
        if self.holder["kernel_lock"] and (ours or not former):
            return True
        seen = os.fstat(file).st_mtime_ns
        left = max(2 * HEARTBEAT_SECONDS, STALE_SECONDS - max(0, self._age(seen)))
        logger.warning(f"{self.path}: {_name(former)} may still run; waiting up to {left:.0f} s")
        deadline = time.monotonic() + left
        while time.monotonic() < deadline:
            time.sleep(min(1, HEARTBEAT_SECONDS))
            if not self._is_current(file):
                return False
            if os.stat(self.path).st_mtime_ns != seen:
                raise self._in_use(file)
        return True

    def _age(self, written: int) -> float:
        """Seconds since ``written`` (ns), by the clock of the file system."""
        with tempfile.TemporaryFile(dir=self.path.parent) as probe:
            return (os.fstat(probe.fileno()).st_mtime_ns - written) / 1e9

    def _is_current(self, file: int) -> bool:
        """Whether the path is that of this open file. A second open would, when closed, release
        the kernel lock."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(file))
        except FileNotFoundError:
            return False

    def _is_mine(self) -> bool:
        return self._is_current(self._file) and _read(self._file) == self.holder

    def _in_use(self, file: int) -> ConfigError:
        deadline = time.monotonic() + _NAMING_SECONDS
        while not _read(file) and time.monotonic() < deadline:
            time.sleep(0.05)
        return ConfigError(
            f"train.output_dir {self.path.parent} is in use by {_name(_read(file))}: wait for its "
            "end, stop it, or set another train.output_dir"
        )

    def _send_heartbeats(self) -> None:
        # The first one soon: another run may be taking the same stale lock.
        wait, failed = min(1, HEARTBEAT_SECONDS), False
        while not self._released.wait(wait):
            wait = HEARTBEAT_SECONDS
            try:
                self._send_heartbeat()
            except ConfigError:
                self._exit()
            except OSError as error:
                if not failed:
                    logger.warning(f"{self.path}: {error.strerror}")
                failed = True
            else:
                failed = False

    def _send_heartbeat(self) -> None:
        if self._is_mine():
            os.utime(self._file)
        elif self.path.exists():
            self._exit()
        else:
            self._make_again()

    def _make_again(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self._take()
        if file is not None:
            os.close(self._file)
            self._file = file
            logger.warning(f"{self.path} was removed during the run: made again")

    def _exit(self) -> None:
        """Another run writes here now: this one must not save any more."""
        try:
            with open(self.path, "rb", buffering=0) as file:
                other = _read(file.fileno())
        except OSError:  # it has ended by now
            other = {}
        text = (
            f"error: {self.path.parent} was taken over by {_name(other)}, since this run was "
            f"suspended for more than {STALE_SECONDS} s\n"
        )
        if not report_failure(text):
            print(text, end="", file=sys.stderr, flush=True)
        os._exit(USAGE_ERROR)


def _read(file: int) -> dict[str, Any]:
    """The holder of a lock; empty if it is not written."""
    try:
        content = json.loads(os.pread(file, _SIZE, 0))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _name(holder: dict[str, Any]) -> str:
    if not holder:
        return "an unknown run"
    host, process, started = (repr(holder.get(key))[:60] for key in ("host", "process", "started"))
    return f"the run of process {process} on host {host}, started {started}"


def _boot() -> str:
    """Differs between machines and between boots."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
