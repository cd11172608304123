"""Ports of this machine: reserving them for a job, and listening on them."""

from __future__ import annotations

import argparse
import contextlib
import errno
import ipaddress
import os
import socket
import sys

from libai_ext.errors import ConfigError

LAST = 65535


def number(text: str) -> int:
    """A port, as a type for ``argparse``."""
    if not text.isdecimal() or not 0 < int(text) <= LAST:
        raise argparse.ArgumentTypeError(f"PORT is a number from 1 to {LAST}, not {text!r}")
    return int(text)


def hold(ports: list[int]) -> list[socket.socket]:
    """Reserve these ports for a job until the returned sockets are closed.

    The engine lets several jobs listen on one port, and their ranks mix. So a job binds an abstract
    Unix socket for each of its ports: only one process can, and the kernel frees it at its end.

    Raises:
        ConfigError: another job of this machine has reserved one, or a program listens there.
    """
    held = []
    for port in ports:
        held.append(socket.socket(socket.AF_UNIX))
        try:
            held[-1].bind(f"\0libai_ext port {port}")
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise ConfigError(refusal(port, "another job uses it")) from None
        try:
            socket.create_server(("", port)).close()
        except OSError as error:
            raise ConfigError(refusal(port, os.strerror(error.errno or 0))) from None
    return held


def refusal(port: int | str, why: str) -> str:
    """The error message for a port that a job cannot use."""
    return f"port {port} of this machine cannot be used: {why}; set another PORT"


def free() -> tuple[int, list[socket.socket]]:
    """A free port, and the sockets that reserve it."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        with contextlib.suppress(ConfigError):  # another launcher was faster
            return port, hold([port])


def listen(address: str, port: int) -> socket.socket:
    """Listen on ``address`` alone.

    If this machine does not have that address, or it is a loopback address under another name, it
    warns and listens on all addresses.

    Raises:
        OSError: the port is taken.
    """
    try:
        own = socket.gethostbyname(address)
        if ipaddress.ip_address(own).is_loopback and address not in (own, "localhost"):
            raise OSError(f"it is {own} here")
        socket.create_server((own, 0)).close()
    except OSError as error:
        print(
            f"launch: port {port} is open on all addresses of this machine, not only on "
            f"{address}: {error}",
            file=sys.stderr,
            flush=True,
        )
        own = ""
    return socket.create_server((own, port))
