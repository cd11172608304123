"""Ports of this machine: which a job may have, and on which address a launcher listens."""

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
    """The type of an option of ``argparse``."""
    if not text.isdecimal() or not 0 < int(text) <= LAST:
        raise argparse.ArgumentTypeError(f"PORT is a number from 1 to {LAST}, not {text!r}")
    return int(text)


def hold(ports: list[int]) -> list[socket.socket]:
    """Have these ports for a job, as long as what is returned is open.

    The engine lets several jobs listen on one port; their ranks mix. So a job has a name in the
    kernel for each of its ports, which no second one gets and which goes with its process.

    Raises:
        ConfigError: another job of this machine has one of them, or a program listens there.
    """
    held = []
    for port in ports:
        held.append(socket.socket(socket.AF_UNIX))
        try:
            held[-1].bind(f"\0libai_ext port {port}")
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise ConfigError(refusal(port, "another job has it")) from None
        try:
            socket.create_server(("", port)).close()
        except OSError as error:
            raise ConfigError(refusal(port, os.strerror(error.errno or 0))) from None
    return held


def refusal(port: int | str, why: str) -> str:
    """What to say where a job cannot have a port."""
    return f"port {port} of this machine cannot be used: {why}; set another PORT"


def free() -> tuple[int, list[socket.socket]]:
    """A port that nothing uses, and what holds it."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        with contextlib.suppress(ConfigError):  # another launcher was faster
            return port, hold([port])


def listen(address: str, port: int) -> socket.socket:
    """A listener on ``address`` alone, or on all, with a warning, where the others of a job know
    this machine by an address that it does not have, or that leads to itself on every machine.

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
            f"launch: port {port} is open on all addresses of this machine, not on {address} "
            f"alone: {error}",
            file=sys.stderr,
            flush=True,
        )
        own = ""
    return socket.create_server((own, port))
