"""Verbs for parked messages: parked, redrive, discard."""

from __future__ import annotations

import argparse
from typing import Any

from django.db.models import QuerySet
from django.forms.models import model_to_dict

from ...models import ParkedMessage
from ...operations import action_log, redrives
from .printer import Printer, ago
from .verb import Verb, positive, whole


class Parked(Verb):
    """list the parked messages of a group"""

    name = "parked"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("group", metavar="GROUP")
        parser.add_argument("--key", metavar="K", help="only this key")
        parser.add_argument("--limit", type=positive, metavar="N", help="at most N")

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Write a line per message."""
        found = redrives.list_parked(
            options["group"], key=options["key"], using=options["database"]
        )
        print_parked(printer, found[: options["limit"]])


class Redrive(Verb):
    """handle parked messages again, in order; what fails again stays parked"""

    name = "redrive"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("group", metavar="GROUP")
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument("--key", metavar="K", help="the messages of this key")
        which.add_argument("--position", type=whole, metavar="N", help="those of its key")
        which.add_argument("--all", action="store_true", help="all of the group")
        parser.add_argument("--limit", type=positive, metavar="N", help="most messages to try")
        parser.add_argument("--dry-run", action="store_true", help="count, change nothing")
        parser.add_argument("--reason", default="", help="stored in the action log")

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Write how many succeeded, and what failed again."""
        done = redrives.redrive(
            options["group"],
            key=options["key"],
            position=options["position"],
            everything=options["all"],
            limit=options["limit"],
            dry_run=options["dry_run"],
            using=options["database"],
        )
        if not options["dry_run"]:
            action_log.record(
                "redrive",
                options["group"],
                using=options["database"],
                old={name: options[name] for name in ("key", "position", "all")},
                new={"handled": done.handled, "remaining": done.remaining},
                reason=options["reason"],
            )
        if printer.as_json:
            return printer.json(done)
        printer.line(
            f"{done.handled} handled, {done.skipped} skipped, {len(done.failed)} failed again, "
            f"{done.remaining} parked still"
        )
        if done.failed:
            printer.table(
                "POSITION <CHANNEL <KEY <ERROR",
                [[each.position, each.channel, each.key, each.error] for each in done.failed],
            )


class Discard(Verb):
    """delete a parked message; it will not be handled"""

    name = "discard"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("group", metavar="GROUP")
        parser.add_argument("--position", type=whole, required=True, metavar="N")
        parser.add_argument("--reason", required=True, help="stored in the action log")

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Write what was dropped."""
        dropped = redrives.discard(
            options["group"],
            options["position"],
            reason=options["reason"],
            using=options["database"],
        )
        if printer.as_json:
            return printer.json(dropped)
        printer.line(f"{dropped.channel} {dropped.position} dropped")
        if dropped.remaining:
            printer.note(f"{dropped.remaining} messages of its key are parked still: redrive them.")


def print_parked(printer: Printer, messages: QuerySet[ParkedMessage]) -> None:
    """Write parked messages; JSON holds all of their columns."""
    if printer.as_json:
        return printer.json([model_to_dict(each) for each in messages])
    printer.table(
        "POSITION <CHANNEL <KEY <TYPE <REASON ATTEMPTS PARKED <ERROR",
        [
            [
                each.position,
                each.channel,
                each.key,
                each.type,
                each.reason,
                each.attempts,
                ago(each.parked_at),
                f"{each.error_class.rpartition('.')[2]}: {each.error}" if each.error else None,
            ]
            for each in messages
        ],
    )
