"""The verb for the segments of the log: segments."""

from __future__ import annotations

import argparse
from typing import Any

from ...conf import settings
from ...retention import capacity, maintenance, readers, rules, segments
from .printer import Printer
from .verb import Verb, positive


class Segments(Verb):
    """list the segments of the log with the rules of its channels; create and remove segments"""

    name = "segments"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument(
            "--ahead", type=positive, metavar="N", help="create until N empty segments lie ahead"
        )
        parser.add_argument(
            "--maintain",
            action="store_true",
            help="create segments ahead, and remove what the rules allow",
        )
        parser.add_argument(
            "--budget", type=size, metavar="SIZE", help="say when the log takes so much, as 50GB"
        )

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Write a line per segment, then the rules and the size."""
        using = options["database"]
        done = None
        if options["ahead"] is not None:
            new = maintenance.add_segments(options["ahead"], using)
            printer.note(f"{len(new)} segments added.")
        if options["maintain"]:
            done = maintenance.maintain(using, ahead=options["ahead"] or maintenance.AHEAD)
            _narrate(done, printer)
        found = segments.list_segments(using)
        if printer.as_json:
            return printer.json({"segments": found, "done": done} if done else found)
        printer.table(
            "<SEGMENT FROM TO ROWS BYTES <USE",
            [
                [
                    each.name,
                    each.lower,
                    each.upper and each.upper - 1,
                    each.rows,
                    each.bytes,
                    each.use,
                ]
                for each in found
            ],
        )
        self._rules(printer, using)
        self._capacity(printer, options["budget"], using)

    def _rules(self, printer: Printer, using: str) -> None:
        chosen = rules.current()
        printer.note(f"Channels are kept {chosen.default} unless a rule says otherwise.")
        for channel, reader in sorted(readers.slowest(readers.readers(using)).items()):
            if chosen.of(channel) != rules.FOREVER:
                printer.note(
                    f"{channel}: keep {chosen.of(channel)}; nothing above position "
                    f"{reader.position} is removed before {reader.group} has read it."
                )
        if alias := settings().archive:
            printer.note(f"Messages are archived in storage {alias!r} before they are removed.")

    def _capacity(self, printer: Printer, budget: int | None, using: str) -> None:
        now = capacity.capacity(using)
        text = f"{now.bytes / 1e6:,.1f} MB, growing by {now.bytes_per_day / 1e6:,.1f} MB a day"
        if budget is not None:
            days = now.days_until(budget)
            text += "; the budget lasts " + ("forever" if days is None else f"{days:,.0f} days")
        printer.note(f"The log takes {text}.")


def size(text: str) -> int:
    """Return the bytes that an argument names."""
    try:
        return capacity.parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _narrate(done: maintenance.Done, printer: Printer) -> None:
    if done.is_busy:
        return printer.note("Another maintenance is at work: nothing done.")
    for what in ("created", "promoted", "archived", "compacted", "dropped"):
        if names := getattr(done, what):
            printer.note(f"{what}: {', '.join(names)}")
    for hold in done.held:
        printer.note(f"kept: {hold}")
