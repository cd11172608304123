"""An HTTP server of files on this machine, with the faults of real ones."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class ShardServer(ThreadingHTTPServer):
    """Serves ``files``, bytes by name.

    Attributes:
        asked: (method, name, Range) of each request so far.
        faults: of the next requests for shards, by GET: ``503``, ``cut``, ``wrong``, ``slow``,
            ``more`` (than was asked for), ``redirect`` (to the same place), or ``""``.
        down: names that give 503.
        always: a fault of all requests without another one.
        parts: whether Range is understood.
    """

    daemon_threads = True

    def __init__(self, files):
        self.files, self.asked, self.faults, self.down = dict(files), [], [], set()
        self.always, self.parts, self.tags = "", True, True
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_):
        """Clients that are killed break off."""

    def fetched(self):
        """The names whose bytes were asked for, each once."""
        return sorted({name for method, name, _ in self.asked if method == "GET"})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self._answer(False)

    def do_GET(self):
        self._answer(True)

    def _answer(self, with_body):
        server, name = self.server, self.path.split("?")[0].lstrip("/")
        wanted = self.headers.get("Range")
        server.asked.append((self.command, name, wanted))
        body = server.files.get(name)
        fault = "503" if name in server.down else server.always
        if with_body and name.endswith(".tar") and server.faults:
            fault = server.faults.pop(0)
        if fault == "slow":
            time.sleep(1.5)
        if fault == "redirect":
            self.send_response(302)
            self.send_header("Location", self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if body is None or fault.isdigit():
            self.send_response(int(fault or 404))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        first, last = 0, len(body) - 1
        if wanted and server.parts:
            first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", wanted).groups())
        data = body[first : last + 1]
        if fault == "more":
            data = body + bytes(9 << 20)
        self.send_response(206 if wanted and server.parts else 200)
        if server.tags:
            self.send_header("ETag", f'"{hashlib.md5(body).hexdigest()}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if not with_body:
            return
        if fault == "wrong":
            data = bytes(len(data))
        if fault == "cut":
            data, self.close_connection = data[: len(data) // 2], True
        try:
            self.wfile.write(data)
        except OSError:
            pass

    def log_message(self, *_):
        pass
