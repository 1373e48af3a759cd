"""The verb for the segments of the log: segments."""

from __future__ import annotations

import argparse
from typing import Any

from ...retention import segments
from .printer import Printer
from .verb import Verb, positive


class Segments(Verb):
    """list the segments of the log, and add some ahead"""

    name = "segments"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("--ahead", type=positive, metavar="N", help="see that N are ahead")

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Write a line per segment."""
        using = options["database"]
        if options["ahead"] is not None:
            new = segments.create_ahead(options["ahead"], using)
            printer.note(f"{len(new)} segments added.")
        found = segments.list_segments(using)
        if printer.as_json:
            return printer.json(found)
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
