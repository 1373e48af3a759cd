"""The verb for event classes: events lock, check, catalogue."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgspec

from ... import events as event_registry
from ... import groups
from ...streams import event_lock
from .printer import Printer
from .verb import Verb, failed_check

LOCK_FILE = Path("events.lock.json")


def _fields(event_type: Any) -> tuple[msgspec.structs.FieldInfo, ...]:
    return msgspec.structs.fields(event_type)


class Events(Verb):
    """lock the shapes of event classes, check changes against the lock, list the classes"""

    name = "events"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("what", choices=["lock", "check", "catalogue"])
        parser.add_argument("--file", type=Path, default=LOCK_FILE, metavar="FILE")

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Do what was asked."""
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

    def _catalogue(self, printer: Printer, file: Path) -> None:
        rows = []
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
        if printer.as_json:
            names = ["channel", "type", "version", "key", "fields", "groups"]
            return printer.json([dict(zip(names, row, strict=True)) for row in rows])
        printer.table("<CHANNEL <TYPE VERSION <KEY <FIELDS <GROUPS", rows)
