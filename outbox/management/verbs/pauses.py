"""Verbs that stop a group and let it go on: pause, resume."""

from __future__ import annotations

import argparse
from typing import Any

from ...operations import pauses
from .printer import Printer, slots
from .verb import Verb, add_scope, time_with_zone


class Pause(Verb):
    """pause a group, until a time or until it is resumed"""

    name = "pause"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        add_scope(parser)
        parser.add_argument(
            "--until",
            type=time_with_zone,
            metavar="T",
            help="a time with zone; without it: until resume",
        )

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Write the cursors of the paused group."""
        rows = pauses.pause(
            options["group"],
            until=options["until"],
            channels=options["channel"],
            reason=options["reason"],
            using=options["database"],
        )
        until = (options["until"] or pauses.FOREVER).isoformat()
        _print_rows(printer, options["group"], rows, {"paused_until": until})


class Resume(Verb):
    """resume a paused group"""

    name = "resume"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        add_scope(parser)

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Write the cursors of the resumed group."""
        rows = pauses.resume(
            options["group"],
            channels=options["channel"],
            reason=options["reason"],
            using=options["database"],
        )
        _print_rows(printer, options["group"], rows, {"paused_until": None})
        if not rows:
            printer.note("Nothing was paused.")


def _print_rows(
    printer: Printer, group: str, rows: list[Any], changed: dict[str, str | None]
) -> None:
    if printer.as_json:
        return printer.json(
            [
                {
                    "group": group,
                    "channel": row.channel,
                    "slot_from": row.slot_from,
                    "slot_to": row.slot_to,
                    "position": row.position,
                    **changed,
                }
                for row in rows
            ]
        )
    end = changed["paused_until"]
    shown = "until resume" if end == pauses.FOREVER.isoformat() else end
    printer.table(
        "<CHANNEL SLOTS POSITION PAUSED-UNTIL",
        [[row.channel, slots(row.slot_from, row.slot_to), row.position, shown] for row in rows],
    )
