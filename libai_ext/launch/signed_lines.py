"""Lines of text between two programs that know the same secret.

Each side sends a random number. It signs every later line by HMAC-SHA256: the key is made of the
secret and both numbers, the message includes the direction and the number of the line. So nobody
can forge, change, repeat, drop or return a line, or use it on another connection; anyone on the
way can read it. (``multiprocessing.connection`` proves the identity only at the start, and waits
without a time limit.)
"""

from __future__ import annotations

import hmac
import secrets

# Bytes; a reader buffers at most two lines.
LONGEST = 256


class Lines:
    """One connection, made by :func:`handshake`."""

    def __init__(self, reader, writer, key: bytes, listening: bool):
        self.writer = writer
        self._reader = reader
        self._key = key
        self._sends = _counted("listening" if listening else "connecting")
        self._expects = _counted("connecting" if listening else "listening")

    def send(self, text: str) -> None:
        """``text`` has no line break, and at most :data:`LONGEST` - 66 bytes."""
        signature = _sign(self._key, next(self._sends) + text.encode())
        self.writer.write(f"{signature} {text}\n".encode())

    async def receive(self) -> str:
        """The next line.

        Raises:
            ConnectionError: the other side has closed the connection.
            ValueError: it is too long or wrongly signed.
        """
        line = await self._reader.readline()
        if not line:
            raise ConnectionError("the other side has closed the connection")
        signature, _, text = line.rstrip(b"\n").partition(b" ")
        expected = _sign(self._key, next(self._expects) + text)
        if not hmac.compare_digest(signature, expected.encode()):
            raise ValueError("a line with a wrong signature")
        return text.decode()


async def handshake(reader, writer, secret: str, listening: bool) -> Lines:
    """Start a new connection. The first line that arrives proves who sends it.

    Args:
        reader, writer: ``asyncio``'s; the reader has the limit :data:`LONGEST`.

    Raises:
        ValueError: the other side's first line is too long.
    """
    own = secrets.token_hex(16).encode()
    writer.write(own + b"\n")
    other = (await reader.readline()).rstrip(b"\n")
    # The order depends on the role: the other side cannot choose its number to swap the two.
    both = own + b" " + other if listening else other + b" " + own
    return Lines(reader, writer, _sign(secret.encode(), both).encode(), listening)


def _sign(key: bytes, message: bytes) -> str:
    return hmac.new(key, message, "sha256").hexdigest()


def _counted(side: str):
    number = 0
    while True:
        yield f"{side} {number} ".encode()
        number += 1
