"""The verb for event-sourced models: rebuild."""

from __future__ import annotations

import argparse
from typing import Any

from django.apps import apps
from django.core.management.base import CommandError

from ...processes.exit_codes import ExitCode
from ...streams.aggregate import Aggregate
from ...streams.rebuilding import rebuild_all
from .printer import Printer
from .verb import Verb

EVERY = 1000
"""Rows between two lines of progress."""


class Rebuild(Verb):
    """make the rows of an event-sourced model from their streams again"""

    name = "rebuild"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("model", metavar="APP.MODEL")
        parser.add_argument("--key", metavar="K", help="only this row")
        parser.add_argument(
            "--after", default="", metavar="K", help="go on behind this key, after an interruption"
        )

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Write how many rows were rebuilt; every so often, up to which key."""
        model = _aggregate(options["model"])
        if options["key"] is not None:
            model.rebuild(options["key"], using=options["database"])
            count = 1
        else:
            count = 0
            keys = rebuild_all(model, after=options["after"], using=options["database"])
            for count, key in enumerate(keys, 1):
                if count % EVERY == 0:
                    printer.note(f"{count} rows; go on with --after {key} if this is interrupted")
        if printer.as_json:
            return printer.json({"rebuilt": count})
        printer.line(f"{count} rows rebuilt")


def _aggregate(label: str) -> type[Aggregate]:
    known = [model for model in apps.get_models() if issubclass(model, Aggregate)]
    for model in known:
        if model._meta.label_lower == label.lower():
            return model
    names = ", ".join(model._meta.label for model in known) or "none"
    raise CommandError(
        f"{label!r} is no event-sourced model; those are: {names}.", returncode=ExitCode.USAGE
    )
