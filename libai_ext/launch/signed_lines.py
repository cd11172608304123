"""Lines of text between two programs that know the same secret.

Each side sends a random number, and signs every line that follows with a key made of the secret
and both numbers (HMAC-SHA256), over its direction and its place in the order as well. So no line
can be forged, changed, repeated, left out, sent back, or used again on another connection; anyone
on the way can read it. (``multiprocessing.connection`` proves only who begins, and waits without a
time limit.)
"""

from __future__ import annotations

import hmac
import secrets

# Bytes; a reader holds no more than two lines that nobody has asked for.
LONGEST = 256


class Lines:
    """One connection, from :func:`greet`."""

    def __init__(self, reader, writer, key: bytes, listening: bool):
        self.writer = writer
        self._reader = reader
        self._key = key
        self._sends = _counted("listening" if listening else "connecting")
        self._expects = _counted("connecting" if listening else "listening")

    def send(self, text: str) -> None:
        """``text``: without a line break, and within :data:`LONGEST` with 65 bytes before it."""
        signature = _sign(self._key, next(self._sends) + text.encode())
        self.writer.write(f"{signature} {text}\n".encode())

    async def receive(self) -> str:
        """The next line.

        Raises:
            ConnectionError: the other side has closed.
            ValueError: it is too long, or the other side has not signed it.
        """
        line = await self._reader.readline()
        if not line:
            raise ConnectionError("the other side has closed")
        signature, _, text = line.rstrip(b"\n").partition(b" ")
        expected = _sign(self._key, next(self._expects) + text)
        if not hmac.compare_digest(signature, expected.encode()):
            raise ValueError("a line with a wrong signature")
        return text.decode()


async def greet(reader, writer, secret: str, listening: bool) -> Lines:
    """The lines of a new connection; the first that is received proves who sends it.

    Args:
        reader, writer: of ``asyncio``, the reader with the limit :data:`LONGEST`.

    Raises:
        ValueError: the other side's first line is too long.
    """
    own = secrets.token_hex(16).encode()
    writer.write(own + b"\n")
    other = (await reader.readline()).rstrip(b"\n")
    # The own number stands where a chosen one of the other side cannot take its place.
    both = own + b" " + other if listening else other + b" " + own
    return Lines(reader, writer, _sign(secret.encode(), both).encode(), listening)


def _sign(key: bytes, message: bytes) -> str:
    return hmac.new(key, message, "sha256").hexdigest()


def _counted(side: str):
    number = 0
    while True:
        yield f"{side} {number} ".encode()
        number += 1
