"""A file server on this machine that can break off, refuse or send other bytes."""

from __future__ import annotations

import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Serves ``body`` under every name.

    Attributes:
        ranges: the Range header of each request so far.
        cuts: how many bytes the next answers give before they break off.
        parts: whether Range is understood.
        status: of every answer, where set.
    """

    daemon_threads = True

    def __init__(self, body):
        self.body, self.ranges, self.cuts, self.parts, self.status = body, [], [], True, None
        self.delay = 0
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/files/set.tar.gz"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.ranges.append(wanted)
        time.sleep(server.delay)
        if server.status:
            self.send_error(server.status)
            return
        first = int(re.match(r"bytes=(\d+)-", wanted)[1]) if wanted and server.parts else 0
        if first >= len(server.body):
            self.send_error(416)
            return
        rest = server.body[first:]
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: server.cuts.pop(0)] if server.cuts else rest)

    def log_message(self, *_):
        pass
