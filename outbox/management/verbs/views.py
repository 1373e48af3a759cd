"""Verbs that only look: groups, describe, check, tail, audit, doctor."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from django.core.management.base import CommandError

from ... import groups
from ...operations import audit, doctor, redrives, status, tail
from ...operations.range_status import RangeStatus
from ...operations.sessions import HorizonStatus
from ...operations.status import Description, GroupStatus
from .printer import Printer, ago, at_least, slots
from .repairs import print_parked
from .verb import Verb, past_threshold, positive, time_with_zone


class Groups(Verb):
    """list the groups: what is late, and why"""

    name = "groups"

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Write a line per group."""
        states = status.list_groups(options["database"])
        if printer.as_json:
            return printer.json(states)
        printer.table(
            "<GROUP <STATUS POSITION HEAD LAG LAG-SECONDS RATE/S PARKED WORKERS LAST-COMMIT",
            [_row(state) for state in states],
        )
        known = {state.group for state in states}
        idle = [group.name for group in groups.all_groups() if group.name not in known]
        if idle:
            printer.note(f"Declared, but no worker has run for: {', '.join(idle)}")


class Describe(Verb):
    """show one group in full, and who holds the horizon back"""

    name = "describe"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("group", metavar="GROUP")
        only = parser.add_mutually_exclusive_group()
        only.add_argument("--ranges", action="store_true", help="only its ranges of slots")
        only.add_argument("--workers", action="store_true", help="only its workers")
        only.add_argument("--parked", action="store_true", help="only its parked messages")

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Write the part that is asked for; without a part, the summary and the ranges."""
        using = options["database"]
        if options["parked"]:
            return print_parked(printer, redrives.list_parked(options["group"], using=using))
        description = status.describe(options["group"], using)
        if printer.as_json:
            return printer.json(description)
        if options["workers"]:
            return _print_workers(printer, description)
        if not options["ranges"]:
            _print_summary(printer, description)
            printer.line()
        _print_ranges(printer, description.ranges)


class Check(Verb):
    """compare a group with thresholds: exit code 3 when it is past one"""

    name = "check"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("group", metavar="GROUP")
        parser.add_argument("--lag", type=int, metavar="N", help="most pending messages")
        parser.add_argument(
            "--lag-seconds", type=float, metavar="S", help="greatest age of a pending message"
        )
        parser.add_argument("--parked", type=int, metavar="N", help="most parked messages")

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Write one line; the exit code is the answer."""
        limits = {name: options[name] for name in ("lag", "lag_seconds", "parked")}
        if all(limit is None for limit in limits.values()):
            raise CommandError("Give --lag, --lag-seconds or --parked.", returncode=2)
        state, past = status.check(options["group"], **limits, using=options["database"])
        if printer.as_json:
            printer.json(dataclasses.asdict(state) | {"past": past})
        else:
            lag = at_least(state.lag, state.lag_is_bound)
            printer.line(
                f"{state.group} {printer.status(state.status)}: lag {lag}, "
                f"{state.lag_seconds:.1f} s, {state.parked} parked"
            )
        if past:
            raise past_threshold(f"{state.group}: {'; '.join(past)}")


class Tail(Verb):
    """show the latest messages of the log, and the new ones as they come"""

    name = "tail"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("channel", nargs="?", metavar="CHANNEL", help="default: all")
        parser.add_argument("--follow", "-f", action="store_true", help="go on until interrupted")
        parser.add_argument("--key", metavar="K", help="only messages with this key")
        parser.add_argument("--type", metavar="T", help="only messages of this type")
        start = parser.add_mutually_exclusive_group()
        start.add_argument("--lines", "-n", type=positive, default=10, metavar="N")
        start.add_argument(
            "--from",
            dest="start",
            type=_start,
            metavar="WHERE",
            help="earliest, latest, a position or a time with zone",
        )

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Write a line per message; as JSON, one document per line."""
        using = options["database"]
        chosen = tail.Filter(channel=options["channel"], key=options["key"], type=options["type"])
        if options["start"] is None:
            messages, after = tail.latest(chosen, options["lines"], using)
            for message in messages:
                _print_message(printer, message)
        else:
            after = tail.position_of(options["start"], using)
        if options["start"] is None and not options["follow"]:
            return
        read = tail.follow if options["follow"] else tail.read
        try:
            for message in read(chosen, after, using):
                _print_message(printer, message)
        except KeyboardInterrupt:
            return


class Audit(Verb):
    """prove that a group skipped and repeated nothing since its last reset: exit code 3 if not"""

    name = "audit"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("group", metavar="GROUP")

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Write the account of each channel."""
        account = audit.audit(options["group"], options["database"])
        if printer.as_json:
            printer.json(account)
        else:
            names = ("channel", "messages", "processed", "skipped", "parked", "difference")
            printer.table(
                "<CHANNEL MESSAGES PROCESSED SKIPPED PARKED DIFFERENCE",
                [[getattr(each, name) for name in names] for each in account.channels],
            )
        findings = [f"{c.channel}: {text}" for c in account.channels for text in c.findings]
        if findings:
            raise past_threshold(f"{account.group}: {'; '.join(findings)}")


class Doctor(Verb):
    """examine the database for whatever breaks the log: exit code 3 if something does"""

    name = "doctor"

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Write a line per check, and the fix below it."""
        findings = doctor.examine(options["database"])
        if printer.as_json:
            printer.json(findings)
        else:
            for each in findings:
                level = printer.status(f"{each.level:<4}")
                printer.line(f"{level}  {each.check:<12}  {each.detail}")
                if each.fix:
                    printer.line(f"{'':<20}{each.fix}")
        failed = [each.check for each in findings if each.level == "fail"]
        if failed:
            raise past_threshold(f"Failed: {', '.join(failed)}")


def _row(state: GroupStatus) -> list[Any]:
    return [
        state.group,
        state.status,
        state.position,
        state.head,
        at_least(state.lag, state.lag_is_bound),
        state.lag_seconds,
        state.rate,
        state.parked,
        state.workers,
        ago(state.last_commit),
    ]


def _print_summary(printer: Printer, description: Description) -> None:
    state = description.summary
    lag = at_least(state.lag, state.lag_is_bound)
    oldest = f", the oldest {state.lag_seconds:.1f} s old" if state.lag else ""
    why = f": {state.why}" if state.why else ""
    done = f"{state.processed} processed, {state.skipped} skipped, {state.parked} parked"
    pairs = [
        ("GROUP", state.group),
        ("STATUS", printer.status(state.status) + why),
        ("POSITION", f"{state.position} of {state.head}"),
        ("LAG", f"{lag} messages{oldest}"),
        ("RATE", f"{state.rate:.1f} messages/s, last commit {ago(state.last_commit)}"),
        ("DONE", done),
        ("WORKERS", str(state.workers)),
        *_horizon_lines(description.horizon),
        *[
            ("ACTION", f"{each.action} by {each.actor} {ago(each.at)} {each.details['reason']}")
            for each in description.actions
        ],
    ]
    printer.block(pairs)


def _horizon_lines(horizon: HorizonStatus) -> list[tuple[str, str]]:
    place = f"{horizon.horizon} of {horizon.head}"
    holder = horizon.held_by
    if holder is None:
        return [("HORIZON", place)]
    since = f"since {holder.since.isoformat()}" if holder.since else ""
    lines = [
        ("HORIZON", f"{place}, held back by {holder}"),
        ("", f"{holder.state} for {holder.seconds:.0f} s {since}, user {holder.user!r}"),
    ]
    return [*lines, ("", " ".join(holder.query.split())[:80])] if holder.query else lines


def _print_ranges(printer: Printer, ranges: list[RangeStatus]) -> None:
    rows = [
        [
            each.channel,
            slots(each.slot_from, each.slot_to),
            each.status,
            each.position,
            at_least(each.lag, each.lag_is_bound),
            each.lag_seconds,
            each.rate,
            each.parked,
            each.owner,
        ]
        for each in ranges
    ]
    header = "<CHANNEL SLOTS <STATUS POSITION LAG LAG-SECONDS RATE/S PARKED <OWNER"
    printer.table(header, rows)


def _print_workers(printer: Printer, description: Description) -> None:
    rows = [
        [each.name, each.pid, each.address, ago(each.since), each.state, each.transaction_seconds]
        for each in description.workers
    ]
    printer.table("<WORKER PID <HOST CONNECTED <STATE IN-TRANSACTION", rows)


def _print_message(printer: Printer, message: tail.StoredMessage) -> None:
    if printer.as_json:
        return printer.json(message)
    at = message.created_at.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    key = "-" if message.key is None else message.key
    payload = tail.text_of(message.payload)
    printer.line(f"{message.position} {at} {message.channel} {message.type} {key} {payload}")


def _start(text: str) -> Any:
    if text in ("earliest", "latest"):
        return text
    return int(text) if text.isdecimal() else time_with_zone(text)
