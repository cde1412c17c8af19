"""Serve a `LivePage` at 127.0.0.1. Nothing is written, and other sites cannot read it through a browser of this machine."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import sys
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from hf_rksp.errors import InputError
from hf_rksp.report.kit import html
from hf_rksp.report.run.live import LivePage

logger = logging.getLogger(__name__)

#: Names by which a browser may ask, at any port, because a port may be forwarded. A site whose name was pointed at this machine has
#: another one.
_HOSTS = ("127.0.0.1", "localhost", "[::1]")
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'self'",
    "Cross-Origin-Opener-Policy": "same-origin",
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
        self.page, self.ended = page, False
        self._said: set[str] = set()
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except (OSError, OverflowError) as error:
            raise InputError(f"port={port}: {error}; pass another one, or 0 for any free one") from None

    @property
    def address(self) -> str:
        """Where a browser finds it."""
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def server_close(self) -> None:
        """End, also for browsers that have a connection open."""
        self.ended = True
        super().server_close()

    def say(self, text: str) -> None:
        """Warn of a defect on the terminal, once."""
        if text not in self._said:
            self._said.add(text)
            logger.warning("rksp watch: %s", text)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle is no error; all else is said."""
        error = sys.exception()
        if error is not None and not isinstance(error, (ConnectionError, TimeoutError)):
            self.say(f"{type(error).__name__}: {error}")


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer
    server_version = "rksp"
    sys_version = ""
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(30)
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)

    def do_GET(self) -> None:
        """Answer a browser of this machine."""
        if self.server.ended:
            self.close_connection = True
            return
        asked, path = self.headers.get("Host") or "", self.path.partition("?")[0]
        host = asked.rpartition(":")[0] if asked.rpartition(":")[2].isdigit() else asked
        # A link elsewhere may lead to the shell; nothing else is for other sites.
        foreign = self.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site") and path != "/"
        if host not in _HOSTS or foreign:
            self._send(
                HTTPStatus.FORBIDDEN, "text/plain", b"rksp watch answers to the names 127.0.0.1 and localhost alone\n"
            )
        elif path == "/":
            self._send(HTTPStatus.OK, "text/html", _shell())
        elif path == "/state":
            self._send(HTTPStatus.OK, "application/json", json.dumps(self.server.page.state()).encode())
        elif path == "/page":
            self._page()
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"not found\n")

    do_HEAD = do_GET

    def _page(self) -> None:
        try:
            text = self.server.page.html()
        except Exception as error:  # the page would be asked for again and again, and nobody would know why
            self.server.say(f"the page cannot be drawn ({type(error).__name__}: {error}); please report it")
            why = f"the page cannot be drawn: {type(error).__name__}: {error}\n"
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", why.encode("utf-8", "replace"))
            return
        if text is None:
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", b"the run has not begun\n")
        else:
            self._send(HTTPStatus.OK, "text/html", text)

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def end_headers(self) -> None:
        """Of errors of the library too."""
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """A line per request would bury what the run prints beside it."""


@cache
def _shell() -> bytes:
    """What follows the page: a line about the run, and the page in a frame."""
    package = "hf_rksp.report.run"
    style, script = (html.template_text(package, f"watch.{end}") for end in ("css", "js"))
    return html.page(package, "watch.html", style, script, connects=True).encode()
