"""A small HTTP server in a thread of its own: a few pages, for probes and for Prometheus."""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

logger = logging.getLogger("outbox.monitoring")

Page = tuple[int, str, bytes]
"""Status, content type and body of an answer."""
Pages = Mapping[str, Callable[[Mapping[str, str]], Page]]
"""What answers a path; it takes the parameters of the query."""

CLIENT_SECONDS = 10.0
"""Seconds after which a client that sends nothing is left."""


def plain(status: int, text: str) -> Page:
    """Return a page of plain text."""
    return status, "text/plain; charset=utf-8", f"{text}\n".encode()


def parse_address(text: str) -> tuple[str, int]:
    """Return address and port of "8001", "0.0.0.0:8001" or "[::]:8001"; raises ValueError.

    Without an address it is that of the loopback interface. Port 0: any free one.
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    ipaddress.ip_address(host)
    if not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError(f"{port!r} is not a port")
    return host, int(port)


class HttpServer(ThreadingHTTPServer):
    """Serves `pages` at an address and port from its creation until `close()`.

    Raises OSError when the address cannot be had.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], pages: Pages) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, type("Handler", (_Handler,), {"pages": pages}))
        host, port = str(self.server_address[0]), self.server_address[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        thread = threading.Thread(target=self.serve_forever, name="outbox-http", daemon=True)
        thread.start()

    def close(self) -> None:
        """Stop serving and free the port."""
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    pages: ClassVar[Pages] = {}
    timeout = CLIENT_SECONDS

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        answer = self.pages.get(url.path)
        if answer is None:
            page = plain(404, "There are: " + " ".join(self.pages))
        else:
            try:
                page = answer({name: values[-1] for name, values in parse_qs(url.query).items()})
            except Exception:
                logger.exception("the request for %s failed", url.path)
                page = plain(500, "an error, see the log")
        status, content_type, body = page
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        logger.debug(format, *args)
