"""The verb that deletes what is left of a group: forget."""

from __future__ import annotations

import argparse
from typing import Any

from ... import groups
from ...operations import forgetting
from .printer import Printer
from .verb import Verb


class Forget(Verb):
    """delete a group's cursors and parked messages; a dry run unless --execute is given"""

    name = "forget"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("group", metavar="GROUP")
        parser.add_argument("--channel", metavar="C", help="only this channel")
        parser.add_argument("--execute", action="store_true", help="delete them")
        parser.add_argument("--reason", default="", help="stored in the action log")

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Write a line per channel."""
        found = forgetting.forget(
            options["group"],
            channel=options["channel"],
            reason=options["reason"],
            execute=options["execute"],
            using=options["database"],
        )
        if printer.as_json:
            printer.json(found)
        else:
            rows = [[each.channel, each.ranges, each.position, each.parked] for each in found]
            printer.table("<CHANNEL RANGES POSITION PARKED", rows)
        declared = {
            channel
            for group in groups.all_groups()
            if group.name == options["group"]
            for channel in group.channels
        }
        if again := sorted(declared & {each.channel for each in found}):
            printer.note(
                f"The code still declares the group in {', '.join(again)}: its next worker creates "
                "the cursors again, at the start that the group declares."
            )
        if not options["execute"]:
            printer.note("A dry run: nothing was changed. Add --execute to do it.")
