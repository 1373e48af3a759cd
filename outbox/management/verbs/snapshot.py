"""The verb that publishes the rows a table has already: snapshot."""

from __future__ import annotations

import argparse
from typing import Any

from django.apps import apps
from django.db import models, router

from ...changes import snapshot
from ...exceptions import InvalidSnapshot
from .printer import Printer
from .verb import Verb, positive


class TakeSnapshot(Verb):
    """publish a message for each existing row of a captured model; continues a stopped snapshot"""

    name = "snapshot"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("model", metavar="APP.MODEL")
        parser.add_argument("--channel", metavar="C", help="when it is captured in several")
        parser.add_argument(
            "--where",
            action="append",
            default=[],
            metavar="LOOKUP=VALUE",
            help="only rows that match a Django lookup, such as created__gte=2026-01-31",
        )
        parser.add_argument("--chunk-size", type=positive, default=1000, metavar="N")
        parser.add_argument(
            "--restart", action="store_true", help="discard the progress and begin again"
        )

    def database(self, options: dict[str, Any]) -> str:
        """Return the alias of the database: --database, else where the router writes the model."""
        return options["database"] or router.db_for_write(_model(options))

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Write how many messages there are; how far it is, to stderr."""
        model = _model(options)

        def tell(progress: snapshot.Progress) -> None:
            of = f" of about {progress.total:,} rows" if progress.total else ""
            printer.note(f"{progress.emitted:,}{of}")

        emitted = snapshot.run(
            model,
            snapshot.parse_where(options["where"]),
            channel=options["channel"],
            chunk_size=options["chunk_size"],
            restart=options["restart"],
            progress=tell,
            using=options["database"],
        )
        if printer.as_json:
            printer.json({"model": options["model"], "emitted": emitted})
        else:
            printer.line(f"{emitted} messages of {options['model']}")


def _model(options: dict[str, Any]) -> type[models.Model]:
    try:
        return apps.get_model(options["model"])
    except (LookupError, ValueError) as error:
        raise InvalidSnapshot(f"{options['model']!r} is no model: {error}") from error
