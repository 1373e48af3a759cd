"""The verb for the segments of the log: segments."""

from __future__ import annotations

import argparse
import datetime
from typing import Any

from django.utils import timezone

from ...conf import settings
from ...retention import capacity, maintenance, readers, rules, segments
from .printer import Printer
from .verb import Verb, positive

DAYS_SHOWN = 3650
"""A forecast beyond so many days is not worth a date."""


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
            "--budget", type=size, metavar="SIZE", help="say when the log reaches it, such as 50GB"
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
        forecast = capacity.capacity(using)
        if printer.as_json:
            return printer.json(_document(found, done, forecast, options["budget"]))
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
        _show_capacity(printer, forecast, options["budget"])
        self._rules(printer, using)

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


def _document(
    found: list[segments.Segment],
    done: maintenance.Done | None,
    forecast: capacity.Capacity,
    budget: int | None,
) -> Any:
    """Return the segments alone, unless more was asked for."""
    document: dict[str, Any] = {"segments": found}
    if done is not None:
        document["done"] = done
    if budget is not None:
        document["capacity"] = forecast
        document["days"] = None if forecast.is_young else forecast.days_until(budget)
    return document if len(document) > 1 else found


def _show_capacity(printer: Printer, now: capacity.Capacity, budget: int | None) -> None:
    if now.channels:
        printer.line()
        printer.table(
            "<CHANNEL <KEEP MESSAGES MB MB/DAY REMOVABLE-MB",
            [
                [
                    each.channel,
                    each.rule,
                    each.messages,
                    _megabytes(each.bytes),
                    None if now.is_young else _megabytes(each.bytes_per_day),
                    None if each.removable is None else _megabytes(each.removable),
                ]
                for each in now.channels
            ],
        )
    printer.note(f"The log takes {_megabytes(now.bytes)} MB; channels are estimated by a sample.")
    if not now.is_young:
        printer.note(f"{_megabytes(now.bytes_per_day)} MB are published in a day.")
    if budget is not None:
        printer.note(_forecast(now, budget))


def _forecast(now: capacity.Capacity, budget: int) -> str:
    if now.bytes >= budget:
        return f"It is {_megabytes(now.bytes - budget)} MB over the budget."
    if now.is_young:
        return "Its first message is less than an hour old: too young for a forecast."
    days = now.days_until(budget)
    if days is None:
        return "At this rate it stays below the budget: the rules remove as much as is published."
    if days > DAYS_SHOWN:
        return f"At this rate the budget lasts for more than {DAYS_SHOWN:,} days."
    day = timezone.now() + datetime.timedelta(days=days)
    return f"At this rate it reaches the budget in {days:,.1f} days, on {day:%Y-%m-%d}."


def _megabytes(count: float) -> str:
    return f"{count / 1e6:,.1f}"


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
