"""Verbs of relays: relay."""

from __future__ import annotations

import argparse
from typing import Any

from ...relays import probe
from .printer import Printer
from .verb import Verb, failed_check


class Relay(Verb):
    """send a marked test message to the destination of a relay: exit code 3 if it is not taken"""

    name = "relay"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("action", choices=["test"], help="test: send a test message")
        parser.add_argument("relay", metavar="NAME")

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Write the answer of the destination, a line per channel."""
        answers = probe.send_test(probe.relay_named(options["relay"]))
        if printer.as_json:
            printer.json(answers)
        else:
            print_answers(printer, answers)
        failed = [each.channel for each in answers if not each.ok]
        if failed:
            raise failed_check(f"Not taken: the test message of {', '.join(failed)}")


def print_answers(printer: Printer, answers: list[probe.Answer]) -> None:
    """Write a line per answer of a destination."""
    printer.table(
        "<CHANNEL <DESTINATION <STATE POSITION <DETAIL",
        [
            [
                each.channel,
                each.destination,
                "ok" if each.ok else "failed",
                "-" if each.position is None else each.position,
                each.detail,
            ]
            for each in answers
        ],
    )
