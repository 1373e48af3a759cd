"""The verb that changes the number of slot ranges: scale."""

from __future__ import annotations

import argparse
from typing import Any

from ... import groups
from ...operations import scaling
from .printer import Printer, slots
from .verb import Verb, add_scope, positive, seconds


class Scale(Verb):
    """split or merge the slot ranges of a group: as many workers can share it"""

    name = "scale"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        add_scope(parser, several=False)
        parser.add_argument("--to", type=positive, required=True, metavar="N", help="ranges")
        parser.add_argument(
            "--timeout", type=seconds, default=60.0, metavar="S", help="longest wait for workers"
        )

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Write the ranges as they are then."""
        group, using = groups.get(options["group"]), options["database"]
        ranges = scaling.scale(
            group,
            options["to"],
            channel=options["channel"],
            using=using,
            timeout=options["timeout"],
            reason=options["reason"],
        )
        if printer.as_json:
            return printer.json(ranges)
        printer.table(
            "<CHANNEL SLOTS POSITION LAG <STATUS <OWNER",
            [
                [r.channel, slots(r.slot_from, r.slot_to), r.position, r.lag, r.status, r.owner]
                for r in ranges
            ],
        )
