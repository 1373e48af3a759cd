"""The verb that prints the rights of database roles: grants."""

from __future__ import annotations

import argparse
from typing import Any

from django.core.management.base import CommandError

from ...operations.grants import RIGHTS, grants
from ...processes.exit_codes import ExitCode
from .printer import Printer
from .verb import Verb


class Grants(Verb):
    """print the GRANT statements that database roles need; runs none of them"""

    name = "grants"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare an option per kind of role."""
        for kind in RIGHTS:
            parser.add_argument(
                f"--{kind}", action="append", default=[], metavar="ROLE", help=f"a {kind}'s role"
            )

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Write a statement per line."""
        statements = [
            statement
            for kind in RIGHTS
            for role in options[kind]
            for statement in grants(kind, role, options["database"])
        ]
        if not statements:
            kinds = ", ".join(f"--{kind}" for kind in RIGHTS)
            raise CommandError(f"Name a role: {kinds}.", returncode=ExitCode.USAGE)
        if printer.as_json:
            printer.json(statements)
        else:
            for statement in statements:
                printer.line(statement)
