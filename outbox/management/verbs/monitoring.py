"""Verbs for a monitoring system: exporter, and the files of `monitoring export`."""

from __future__ import annotations

import argparse
import contextlib
import signal
import threading
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from types import FrameType
from typing import Any

from django.core.management.base import CommandError

from ...exceptions import MissingExtra
from ...monitoring import health
from ...monitoring.http_server import HttpServer, parse_address
from ...processes.exit_codes import ExitCode
from .printer import Printer
from .verb import Verb

FILES = ("outbox.rules.yml", "outbox.dashboard.json")


def address(text: str) -> tuple[str, int]:
    """Return the address and port that an argument names."""
    try:
        return parse_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not PORT or ADDRESS:PORT, as in 0.0.0.0:9187 or [::]:9187 ({error})"
        ) from None


@contextlib.contextmanager
def serving(
    where: tuple[str, int] | None, watched: health.Watched, metrics: health.Metrics
) -> Iterator[None]:
    """Serve the health of a worker or supervisor within the block; None: serve nothing.

    An address that cannot be had is a usage error.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(health.served(where, watched, metrics))
        except OSError as error:
            raise not_served(where, "--health-port", error) from error
        yield


def not_served(where: tuple[str, int] | None, option: str, error: OSError) -> CommandError:
    """Return the error for an address and port at which nothing can be served."""
    host, port = where or ("", 0)
    return CommandError(
        f"{host}:{port} cannot be served ({error.strerror}): choose another {option}.",
        returncode=ExitCode.USAGE,
    )


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
            raise not_served(options["port"], "--port", error) from error
        printer.note(f"Serving {server.url}/metrics")
        printer.close()
        handlers = {n: signal.signal(n, stop) for n in (signal.SIGTERM, signal.SIGINT)}
        done.wait()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        server.close()


class Monitoring(Verb):
    """write the alert rules for Prometheus and the dashboard for Grafana into a folder"""

    name = "monitoring"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("what", choices=["export"], help="export: write the files")
        parser.add_argument("folder", type=Path, metavar="DIR", help="made when it is missing")

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Write the files, over those of an earlier release; list what was written."""
        folder: Path = options["folder"]
        written = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name in FILES:
                text = (resources.files("outbox.monitoring") / "files" / name).read_bytes()
                (folder / name).write_bytes(text)
                written.append(str(folder / name))
        except OSError as error:
            raise CommandError(f"{folder} cannot be written: {error.strerror}") from error
        if options["json"]:
            return printer.json(written)
        for name in written:
            printer.line(name)
