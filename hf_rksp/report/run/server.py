"""Serve a `LivePage` on this machine alone. Nothing is written, and other sites cannot read it through a browser."""

from __future__ import annotations

import json
import socket
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from hf_rksp.errors import InputError, RkspError
from hf_rksp.report.kit import html
from hf_rksp.report.run.live import LivePage

#: Names by which a browser may ask: with any other one, a site whose name was pointed at this machine asks.
_HOSTS = ("127.0.0.1", "localhost", "[::1]")
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'self'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class LiveServer(ThreadingHTTPServer):
    """Three addresses: ``/`` shows the page and follows it, ``/page`` is the page, ``/state`` says whether it has changed.

    Args:
        page: what is served.
        port: 0 for any free one.

    Raises:
        InputError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, page: LivePage, port: int = 0) -> None:
        self.page = page
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except (OSError, OverflowError) as error:
            raise InputError(f"port={port}: {error}; pass another one, or 0 for any free one") from None

    @property
    def address(self) -> str:
        """Where a browser finds it."""
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer
    server_version = "rksp"
    sys_version = ""
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(30)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)

    def do_GET(self) -> None:
        """Answer a browser of this machine."""
        host, _, port = (self.headers.get("Host") or "").rpartition(":")
        if host not in _HOSTS or port != str(self.server.server_address[1]):
            self._send(HTTPStatus.FORBIDDEN, "text/plain", b"rksp watch answers to 127.0.0.1 alone\n")
            return
        path = self.path.partition("?")[0]
        if path == "/":
            self._send(HTTPStatus.OK, "text/html", _shell())
        elif path == "/state":
            self._send(HTTPStatus.OK, "application/json", json.dumps(self._state()).encode())
        elif path == "/page":
            self._page()
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"not found\n")

    do_HEAD = do_GET

    def _state(self) -> dict[str, object]:
        try:
            return self.server.page.state()
        except RkspError as error:
            return {"error": str(error)}

    def _page(self) -> None:
        try:
            text = self.server.page.html()
        except RkspError as error:
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", f"{error}\n".encode())
            return
        if text is None:
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", b"the run has not begun\n")
        else:
            self._send(HTTPStatus.OK, "text/html", text)

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """A line per request would bury what the run prints beside it."""


@cache
def _shell() -> bytes:
    """What follows the page: a line about the run, and the page in a frame."""
    package = "hf_rksp.report.run"
    style, script = (html.template_text(package, f"watch.{end}") for end in ("css", "js"))
    return html.page(package, "watch.html", style, script, connects=True).encode()
