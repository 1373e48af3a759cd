"""The verbs erase and restore."""

from __future__ import annotations

import argparse
from typing import Any

from ...operations import erasures
from ...retention.restore import KEPT_FOR
from .printer import Printer
from .verb import Verb, duration


class Erase(Verb):
    """erase the payloads and headers of a key: in the log, parked copies and archived files"""

    name = "erase"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("--channel", required=True, metavar="C")
        parser.add_argument("--key", required=True, metavar="K")
        parser.add_argument("--reason", required=True, help="stored with the record of the change")
        parser.add_argument("--execute", action="store_true", help="without it: only look")

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Write what was found, and whether it was erased."""
        found = erasures.erase(
            options["channel"],
            options["key"],
            reason=options["reason"],
            using=options["database"],
            execute=options["execute"],
        )
        if printer.as_json:
            return printer.json(found)
        printer.line(
            f"{found.messages} messages, {found.parked} parked copies, "
            f"{len(found.files)} archived files"
        )
        if found.unreadable:
            names = ", ".join(found.unreadable)
            printer.note(f"The key may also be in files that cannot be read: {names}.")
        if not (found.messages or found.parked or found.files):
            printer.note("Nothing to erase.")
        elif options["execute"]:
            printer.note("Erased. The write-ahead log, replicas and backups keep old values.")
        else:
            printer.note("Dry run: add --execute to erase.")


class Restore(Verb):
    """bring archived messages back into the log, at their positions"""

    name = "restore"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("--from-position", type=int, default=0, metavar="N")
        parser.add_argument("--to-position", type=int, default=2**63 - 1, metavar="N")
        parser.add_argument(
            "--keep-for",
            type=duration,
            default=KEPT_FOR,
            metavar="DURATION",
            help="how long no rule removes them again (default 7 days)",
        )
        parser.add_argument("--reason", default="", help="stored with the record of the change")
        parser.add_argument("--execute", action="store_true", help="without it: only list files")

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Write a line per file."""
        records, count = erasures.bring_back(
            options["from_position"],
            options["to_position"],
            using=options["database"],
            kept_for=options["keep_for"],
            execute=options["execute"],
            reason=options["reason"],
        )
        rows = [[r.name, r.first_position, r.last_position, r.messages] for r in records]
        if printer.as_json:
            return printer.json({"files": rows, "restored": count})
        printer.table("<FILE FROM TO MESSAGES", rows)
        if options["execute"]:
            printer.note(f"{count} messages restored: reset a group to replay them.")
        else:
            printer.note("Dry run: add --execute to restore.")
