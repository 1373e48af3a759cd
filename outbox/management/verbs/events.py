"""The verb for event classes: events lock, check, catalogue, and the AsyncAPI document."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgspec

from ... import events as event_registry
from ... import groups
from ...sql import all_rows
from ...streams import asyncapi, event_lock
from .printer import Printer
from .verb import Verb, failed_check

LOCK_FILE = Path("events.lock.json")
COLUMNS = {
    "<CHANNEL": "channel",
    "<TYPE": "type",
    "VERSION": "version",
    "<KEY": "key",
    "<FIELDS": "fields",
    "<GROUPS": "groups",
}
COUNTED = {"MESSAGES": "messages", "<LAST": "last_at"}


def _fields(event_type: Any) -> tuple[msgspec.structs.FieldInfo, ...]:
    return msgspec.structs.fields(event_type)


def _counts(using: str) -> dict[tuple[str, str], tuple[int, str]]:
    """Return how many messages the log has of each channel and type, and the time of the last."""
    rows = all_rows("catalogue_types", using)
    return {(channel, name): (count, last.isoformat()) for channel, name, count, last in rows}


class Events(Verb):
    """lock the shapes of event classes, check changes against the lock, list the classes"""

    name = "events"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("what", choices=["lock", "check", "catalogue"])
        parser.add_argument("--file", type=Path, default=LOCK_FILE, metavar="FILE")
        parser.add_argument(
            "--counts",
            action="store_true",
            help="catalogue: how many messages of each type the log holds, and when the last one "
            "was published; reads the whole log",
        )
        parser.add_argument(
            "--asyncapi", action="store_true", help="catalogue: write an AsyncAPI 3.0 document"
        )
        parser.add_argument(
            "--title", default="Events", help="of the AsyncAPI document (default: %(default)s)"
        )
        parser.add_argument(
            "--document-version", default="1.0.0", metavar="V", help="of it (default: %(default)s)"
        )

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Do what was asked."""
        if options["asyncapi"] and options["what"] == "catalogue":
            return printer.json(asyncapi.document(options["title"], options["document_version"]))
        if options["what"] == "catalogue":
            return self._catalogue(printer, options["database"] if options["counts"] else None)
        getattr(self, f"_{options['what']}")(printer, options["file"])

    def _lock(self, printer: Printer, file: Path) -> None:
        count = event_lock.write(file)
        printer.note(f"{count} event types locked in {file}: commit it.")

    def _check(self, printer: Printer, file: Path) -> None:
        problems = event_lock.check(event_lock.read(file))
        if printer.as_json:
            printer.json(problems)
        for problem in problems:
            printer.note(problem)
        if problems:
            raise failed_check(f"{len(problems)} changes would not read stored messages.")
        printer.note("Every stored message of the locked types decodes.")

    def _catalogue(self, printer: Printer, counted_in: str | None) -> None:
        rows = []
        counts = {} if counted_in is None else _counts(counted_in)
        for event_type in event_registry.all_event_types():
            contract = event_type.__contract__
            assert contract is not None
            handled_by = [
                group.name
                for group in groups.all_groups()
                if contract.type in group.routes(contract.channel)
            ]
            rows.append(
                [
                    contract.channel,
                    contract.type,
                    contract.version,
                    event_lock.key_of(contract) or None,
                    ", ".join(field.name for field in _fields(event_type)),
                    ", ".join(handled_by) or None,
                ]
            )
            if counted_in is not None:
                stored = [
                    counts.get((contract.channel, name)) for name in (contract.type, *contract.was)
                ]
                found = [each for each in stored if each is not None]
                rows[-1] += [
                    sum(count for count, _ in found),
                    max((last for _, last in found), default=None),
                ]
        names = COLUMNS if counted_in is None else COLUMNS | COUNTED
        if printer.as_json:
            return printer.json([dict(zip(names.values(), row, strict=True)) for row in rows])
        printer.table(" ".join(names), rows)
