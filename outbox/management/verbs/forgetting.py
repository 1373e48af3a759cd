"""The verb that deletes what is left of a group: forget."""

from __future__ import annotations

import argparse
from typing import Any

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
        parser.add_argument(
            "--force", action="store_true", help="also while code declares it or a worker serves it"
        )
        parser.add_argument("--reason", default="", help="stored in the action log")

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Write a line per channel."""
        found = forgetting.forget(
            options["group"],
            channel=options["channel"],
            reason=options["reason"],
            execute=options["execute"],
            force=options["force"],
            using=options["database"],
        )
        if printer.as_json:
            printer.json(found)
        else:
            rows = [[each.channel, each.ranges, each.position, each.parked] for each in found]
            printer.table("<CHANNEL RANGES POSITION PARKED", rows)
        channels = [each.channel for each in found]
        if why := forgetting.in_use(options["group"], channels, options["database"]):
            printer.note(why if options["execute"] else f"{why} Else --execute needs --force.")
        if not options["execute"]:
            printer.note("A dry run: nothing was changed. Add --execute to do it.")
