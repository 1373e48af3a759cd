"""Verbs for a monitoring system: exporter, and the files of `monitoring export`."""

from __future__ import annotations

import argparse
import signal
import threading
from types import FrameType
from typing import Any

from django.core.management.base import CommandError

from ...exceptions import MissingExtra
from ...monitoring.http_server import HttpServer, parse_address
from ...processes.exit_codes import ExitCode
from .printer import Printer
from .verb import Verb


def address(text: str) -> tuple[str, int]:
    """Return the address and port that an argument names."""
    try:
        return parse_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not PORT or ADDRESS:PORT, as in 0.0.0.0:9187 or [::]:9187 ({error})"
        ) from None


class Exporter(Verb):
    """serve the state of the groups and the log to Prometheus, at /metrics"""

    name = "exporter"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument(
            "--port",
            type=address,
            default=("127.0.0.1", 9187),
            metavar="[ADDRESS:]PORT",
            help="where to serve; by default 127.0.0.1:9187",
        )
        parser.add_argument("--once", action="store_true", help="write the metrics and exit")

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Serve until SIGTERM or SIGINT."""
        using = options["database"]
        try:
            from ...monitoring import exporter
        except ImportError as error:
            raise MissingExtra(extra="metrics", module=error.name or "") from error
        if options["once"]:
            printer.stdout.write(exporter.text(using).decode(), ending="")
            return
        done = threading.Event()

        def stop(number: int, frame: FrameType | None) -> None:
            done.set()

        try:
            server = HttpServer(options["port"], {"/metrics": lambda _: exporter.page(using)})
        except OSError as error:
            host, port = options["port"]
            raise CommandError(
                f"{host}:{port} cannot be served: {error.strerror}; choose another --port.",
                returncode=ExitCode.USAGE,
            ) from error
        printer.note(f"Serving {server.url}/metrics")
        printer.close()
        handlers = {n: signal.signal(n, stop) for n in (signal.SIGTERM, signal.SIGINT)}
        done.wait()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        server.close()
