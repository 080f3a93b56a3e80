"""A local HTTP server for download tests."""

import http.server
import re
import socket
import threading
import time
from collections.abc import Iterator

import pytest


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        served = self.server.served
        served.asked.append(self.headers["Range"])
        body = served.pages.get(self.path)
        if body is None:
            return self.send_error(404)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        start = int(asked[1]) if asked and served.ranges else 0
        if start and start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start : served.stalls_at or served.breaks_at])
        while served.stalls_at:
            time.sleep(0.01)

    def log_message(self, *_: object) -> None:
        pass


class Server:
    """Serve pages, with optional faults.

    Attributes:
        root: Address of the server.
        pages: Page content by path.
        ranges: Whether range requests are honored.
        breaks_at: Byte of each page at which the connection breaks; None never breaks it.
        stalls_at: Byte of each page after which the server stalls until this is reset.
        asked: Range header of each request, or None if it has none.
    """

    def __init__(self, port: int) -> None:
        self.root = f"http://127.0.0.1:{port}"
        self.pages: dict[str, bytes] = {}
        self.ranges = True
        self.breaks_at: int | None = None
        self.stalls_at: int | None = None
        self.asked: list[str | None] = []

    def put(self, name: str, body: bytes) -> str:
        """Serve `body` and return its address."""
        self.pages[f"/{name}"] = body
        return f"{self.root}/{name}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Run a server on the loopback interface."""
    monkeypatch.setenv("no_proxy", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as httpd:
        httpd.served = Server(httpd.server_port)
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield httpd.served
        httpd.shutdown()
        thread.join()


@pytest.fixture
def closed_port(monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the address of a zip on a port where no server is running."""
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{s.getsockname()[1]}/balloon.zip"
