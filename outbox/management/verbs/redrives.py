"""Verbs for parked messages: parked, redrive, discard."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from django.db.models import QuerySet
from django.forms.models import model_to_dict

from ...consuming.cursor_rows import known_group
from ...exceptions import NotParked
from ...models import ParkedMessage
from ...operations import discards, parked_selection, redrives
from ...operations.parked_selection import Selection
from .printer import Printer, ago
from .verb import Verb, failed_check, positive, time_with_zone, whole

PROGRESS_SECONDS = 1.0
"""Between two lines of progress."""


class Parked(Verb):
    """show the parked messages of a group: by error, each, or one in full (--position)"""

    name = "parked"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("group", metavar="GROUP")
        parser.add_argument("--position", type=whole, metavar="N", help="this one, in full")
        parser.add_argument("--key", metavar="K", help="only this key")
        parser.add_argument(
            "--reason",
            choices=ParkedMessage.Reason.values,
            help="only those parked for this reason",
        )
        parser.add_argument(
            "--error", metavar="E", help="only this class of error, or part of its text"
        )
        parser.add_argument(
            "--since", type=time_with_zone, metavar="T", help="parked at a time with zone or later"
        )
        parser.add_argument(
            "--until", type=time_with_zone, metavar="T", help="parked before a time with zone"
        )
        parser.add_argument("--limit", type=positive, metavar="N", help="at most N")

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Write a line per error, then one per message."""
        using = options["database"]
        names = ("position", "key", "reason", "error", "since", "until")
        given = {name: options[name] for name in names}
        chosen = Selection(group=known_group(options["group"], using), **given)
        rows = chosen.rows(using)
        if options["position"] is not None and not printer.as_json:
            parked = rows.first()
            if parked is None:
                raise NotParked(group=chosen.group, wanted=f"at position {options['position']}")
            return _print_in_full(printer, parked)
        if not printer.as_json:
            _print_errors(printer, parked_selection.by_error(chosen, using))
        print_parked(printer, rows[: options["limit"]])


class Redrive(Verb):
    """handle parked messages again, in order; what fails again stays parked (exit code 3)"""

    name = "redrive"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("group", metavar="GROUP")
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument("--key", metavar="K", help="the messages of this key")
        which.add_argument("--position", type=whole, metavar="N", help="those of its key")
        which.add_argument(
            "--error", metavar="E", help="those of keys that failed with this class of error"
        )
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
            error=options["error"],
            everything=options["all"],
            limit=options["limit"],
            dry_run=options["dry_run"],
            reason=options["reason"],
            progress=_Progress(printer),
            using=options["database"],
        )
        if printer.as_json:
            printer.json(done)
        else:
            printer.line(
                f"{done.handled} handled, {done.skipped} skipped, {len(done.failed)} failed again, "
                f"{done.remaining} parked still"
            )
            if done.failed:
                rows = [[each.position, each.channel, each.key, each.error] for each in done.failed]
                printer.table("POSITION <CHANNEL <KEY <ERROR", rows)
        if done.failed:
            raise failed_check(f"{options['group']}: {len(done.failed)} failed again")


class Discard(Verb):
    """delete parked messages; they will not be handled"""

    name = "discard"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("group", metavar="GROUP")
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument("--position", type=whole, metavar="N", help="this one")
        which.add_argument("--key", metavar="K", help="all of this key")
        which.add_argument("--all", action="store_true", help="all of the group")
        parser.add_argument("--dry-run", action="store_true", help="count, change nothing")
        parser.add_argument("--reason", required=True, help="stored in the action log")

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Write what was discarded."""
        if options["position"] is not None and not options["dry_run"]:
            return self._one(printer, options)
        using = options["database"]
        group = known_group(options["group"], using)
        chosen = Selection(group=group, key=options["key"], position=options["position"])
        done = discards.discard_all(
            chosen, reason=options["reason"], execute=not options["dry_run"], using=using
        )
        if printer.as_json:
            return printer.json(done)
        verb = "would be discarded" if options["dry_run"] else "discarded"
        printer.line(
            f"{done.messages} {verb}, of {done.keys} keys, "
            f"positions {done.first_position} to {done.last_position}"
        )

    def _one(self, printer: Printer, options: dict[str, Any]) -> None:
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


class _Progress:
    """Writes the progress of a redrive, at most once a second."""

    def __init__(self, printer: Printer) -> None:
        self.printer = printer
        self.due = time.monotonic() + PROGRESS_SECONDS

    def __call__(self, tried: int, selected: int) -> None:
        if time.monotonic() >= self.due:
            self.due = time.monotonic() + PROGRESS_SECONDS
            self.printer.note(f"{tried} of {selected} tried")


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


def _print_errors(printer: Printer, errors: list[parked_selection.ErrorSummary]) -> None:
    rows = [
        [
            each.messages,
            each.keys,
            each.first_position,
            each.type,
            each.reason,
            ago(each.last_parked_at),
            f"{each.error_class.rpartition('.')[2]}: {each.example}" if each.error_class else None,
        ]
        for each in errors
    ]
    printer.table("MESSAGES KEYS FIRST <TYPE <REASON LAST-PARKED <ERROR", rows)
    printer.line()


def _print_in_full(printer: Printer, parked: ParkedMessage) -> None:
    failed = f"{ago(parked.first_failed_at)} first, {ago(parked.last_failed_at)} last"
    printer.block(
        [
            ("GROUP", parked.group),
            ("POSITION", str(parked.position)),
            ("CHANNEL", parked.channel),
            ("KEY", parked.key if parked.key is not None else "-"),
            ("TYPE", parked.type),
            ("REASON", parked.reason),
            ("ATTEMPTS", str(parked.attempts)),
            ("FAILED", failed if parked.first_failed_at else ""),
            ("PARKED", ago(parked.parked_at)),
            ("ERROR", f"{parked.error_class}: {parked.error}" if parked.error_class else ""),
        ]
    )
    for label, text in (
        ("PAYLOAD", json.dumps(parked.payload, ensure_ascii=False, indent=2)),
        ("HEADERS", json.dumps(parked.headers, ensure_ascii=False, indent=2)),
        ("TRACEBACK", parked.traceback),
    ):
        if text:
            printer.line()
            printer.line(label)
            for line in text.splitlines():
                printer.line(line)
