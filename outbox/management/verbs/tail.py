"""The verb that reads the log: tail."""

from __future__ import annotations

import argparse
from typing import Any

from ...operations import tail
from .printer import Printer
from .verb import Verb, positive, time_with_zone, whole


class Tail(Verb):
    """show the latest messages of the log, and the new ones as they come"""

    name = "tail"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("channel", nargs="?", metavar="CHANNEL", help="default: all")
        parser.add_argument("--follow", "-f", action="store_true", help="go on until interrupted")
        parser.add_argument("--key", metavar="K", help="only messages with this key")
        parser.add_argument("--type", metavar="T", help="only messages of this type")
        start = parser.add_mutually_exclusive_group()
        start.add_argument("--lines", "-n", type=positive, default=10, metavar="N")
        start.add_argument(
            "--from",
            dest="start",
            type=_start,
            metavar="WHERE",
            help="earliest, latest, a position or a time with zone",
        )

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Write a line per message; as JSON, one document per line."""
        using = options["database"]
        chosen = tail.Filter(channel=options["channel"], key=options["key"], type=options["type"])
        tail.check_names(chosen, using)
        if options["start"] is None:
            messages, after = tail.latest(chosen, options["lines"], using)
            for message in messages:
                _print_message(printer, message)
        else:
            after = tail.position_of(options["start"], using)
        if options["start"] is None and not options["follow"]:
            return
        read = tail.follow if options["follow"] else tail.read
        try:
            for message in read(chosen, after, using):
                _print_message(printer, message)
                if options["follow"]:
                    printer.flush()
        except KeyboardInterrupt:
            return


def _print_message(printer: Printer, message: tail.StoredMessage) -> None:
    if printer.as_json:
        return printer.json(message)
    at = message.created_at.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    key = "-" if message.key is None else message.key
    payload = tail.text_of(message.payload)
    printer.line(f"{message.position} {at} {message.channel} {message.type} {key} {payload}")


def _start(text: str) -> Any:
    if text in ("earliest", "latest"):
        return text
    return whole(text) if text.isdecimal() else time_with_zone(text)
