"""`manage.py outbox <verb>`: look after consumer groups."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError, InterfaceError, connections

from ...exceptions import (
    InvalidGroup,
    InvalidPause,
    InvalidReset,
    InvalidSnapshot,
    InvalidTime,
    OutboxError,
    UnknownChannel,
    UnknownGroup,
    UnknownType,
    did_you_mean,
)
from ...processes.exit_codes import ExitCode
from ...sql import clearer_error
from ..verbs import VERBS
from ..verbs.printer import Printer

MISUSES = (
    InvalidGroup,
    InvalidPause,
    InvalidReset,
    InvalidSnapshot,
    InvalidTime,
    UnknownChannel,
    UnknownGroup,
    UnknownType,
)
"""Errors of the caller: they have an exit code of their own, 2."""


class Command(BaseCommand):
    help = "Look after consumer groups. Exit codes: 0 fine, 1 error, 2 usage, 3 a check failed."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        common = ArgumentParser(add_help=False)
        common.add_argument("--json", action="store_true", help="write JSON for programs")
        common.add_argument(
            "--database",
            choices=list(connections),
            help="database alias; by default the one that the router writes messages to",
        )
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
        for verb in VERBS:
            text = (verb.__doc__ or "").strip()
            verb().add_arguments(
                verbs.add_parser(verb.name, parents=[common], help=text, description=text)
            )

    def run_from_argv(self, argv: list[str]) -> None:
        """Answer a misspelt verb with the nearest one; else run the command."""
        known = [verb.name for verb in VERBS]
        if argv[2:] and not argv[2].startswith("-") and argv[2] not in known:
            self.stderr.write(
                f"manage.py outbox has no verb {argv[2]!r}.{did_you_mean(argv[2], known)} "
                f"Verbs: {', '.join(known)}."
            )
            sys.exit(ExitCode.USAGE)
        super().run_from_argv(argv)

    def execute(self, *args: Any, **options: Any) -> str | None:
        """Run the verb; the environment variable NO_COLOR turns colours off."""
        if os.environ.get("NO_COLOR") and not options.get("force_color"):
            options["no_color"] = True
        return super().execute(*args, **options)

    def handle(self, *args: Any, verb: str, **options: Any) -> None:
        """Run the verb; errors become exit codes."""
        (verb_,) = (each() for each in VERBS if each.name == verb)
        printer = Printer(self.stdout, self.stderr, self.style, options["json"])
        try:
            options["database"] = verb_.database(options)
            verb_.run(printer, options)
        except MISUSES as error:
            raise CommandError(str(error), returncode=ExitCode.USAGE) from error
        except OutboxError as error:
            raise CommandError(str(error)) from error
        except (DatabaseError, InterfaceError) as error:
            clearer = clearer_error(error, connections[options["database"]])
            raise CommandError(
                str(clearer or f"Database {options['database']!r}: {error}").strip()
            ) from error
        except BrokenPipeError:
            sys.exit(ExitCode.PIPE)
        finally:
            printer.close()
