"""Verbs that read the state of groups: groups, describe, check."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import time
from typing import Any

from django.core.management.base import CommandError

from ... import groups
from ...checks.databases import log_faults
from ...operations import cures, redrives, retention_status, status
from ...operations.range_status import RangeStatus
from ...operations.sessions import HorizonStatus, SnapshotSession
from ...operations.status import Description, GroupStatus
from ...processes.exit_codes import ExitCode
from ...relays import Relay, probe
from .printer import Printer, ago, at_least, slots
from .redrives import print_parked
from .relays import print_answers
from .verb import Verb, failed_check, seconds, whole

WATCH_SECONDS = 2.0
SHORTEST_WATCH = 0.1


class Groups(Verb):
    """list the groups with their status and lag"""

    name = "groups"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument(
            "--watch",
            type=seconds,
            nargs="?",
            const=WATCH_SECONDS,
            metavar="S",
            help=f"look again every S seconds ({WATCH_SECONDS:g}) until Ctrl-C",
        )

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Write a line per group and their total; with --watch again and again."""
        if options["watch"] is None:
            return self._look(printer, options)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                printer.clear()
                self._look(printer, options)
                printer.flush()
                time.sleep(max(options["watch"], SHORTEST_WATCH))

    def _look(self, printer: Printer, options: dict[str, Any]) -> None:
        states = status.list_groups(options["database"])
        for fault in log_faults(options["database"]):
            printer.note(f"{fault.msg} Run: {fault.hint}")
        for note in retention_status.see(options["database"]).notes:
            printer.note(note)
        if printer.as_json:
            return printer.json(states)
        printer.table(
            "<GROUP <STATUS POSITION HEAD LAG LAG-SECONDS RATE/S PARKED WORKERS LAST-COMMIT",
            [*[_row(state) for state in states], *_total(states)],
        )
        known = {state.group for state in states}
        idle = [group.name for group in groups.all_groups() if group.name not in known]
        if idle:
            printer.note(f"Declared, but no worker has run for: {', '.join(idle)}")


class Describe(Verb):
    """show one group in full, and the sessions that hold it back"""

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
        holds = retention_status.see(using).holds
        if printer.as_json:
            return printer.json(description)
        if options["workers"]:
            return _print_workers(printer, description)
        if not options["ranges"]:
            _print_summary(printer, description)
            for hold in holds:
                if hold.group == description.summary.group:
                    printer.note(f"Retention is held back: {hold}.")
            printer.line()
        _print_ranges(printer, description.ranges)
        group = {each.name: each for each in groups.all_groups()}.get(options["group"])
        if isinstance(group, Relay) and not options["ranges"]:
            printer.line()
            print_answers(printer, probe.look(group, using))


class Check(Verb):
    """compare a group with thresholds: exit code 3 when it is past one"""

    name = "check"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("group", metavar="GROUP")
        parser.add_argument("--lag", type=whole, metavar="N", help="most pending messages")
        parser.add_argument(
            "--lag-seconds", type=seconds, metavar="S", help="greatest age of a pending message"
        )
        parser.add_argument("--parked", type=whole, metavar="N", help="most parked messages")

    def run(self, printer: Printer, options: dict[str, Any]) -> None:
        """Write one line; the exit code is the answer."""
        limits = {name: options[name] for name in ("lag", "lag_seconds", "parked")}
        if all(limit is None for limit in limits.values()):
            raise CommandError("Give --lag, --lag-seconds or --parked.", returncode=ExitCode.USAGE)
        state, past = status.check(options["group"], **limits, using=options["database"])
        past += [f"{fault.msg} Run: {fault.hint}" for fault in log_faults(options["database"])]
        for hold in retention_status.see(options["database"]).holds:
            if hold.group == state.group:
                printer.note(f"Retention is held back: {hold}.")
        if printer.as_json:
            printer.json(dataclasses.asdict(state) | {"past": past})
        else:
            lag = at_least(state.lag, state.lag_is_lower_bound)
            printer.line(
                f"{state.group} {printer.status(state.status)}: lag {lag}, "
                f"{state.lag_seconds:.1f} s, {state.parked} parked"
            )
        if past:
            raise failed_check(f"{state.group}: {'; '.join(past)}")


def _total(states: list[GroupStatus]) -> list[list[Any]]:
    if len(states) < 2:
        return []
    lag = at_least(
        sum(state.lag for state in states), any(state.lag_is_lower_bound for state in states)
    )
    oldest, rate = max(state.lag_seconds for state in states), sum(state.rate for state in states)
    parked = sum(state.parked for state in states)
    return [["total", None, None, None, lag, oldest, rate, parked, None, None]]


def _row(state: GroupStatus) -> list[Any]:
    return [
        state.group,
        state.status,
        state.position,
        state.last_position,
        at_least(state.lag, state.lag_is_lower_bound),
        state.lag_seconds,
        state.rate,
        state.parked,
        state.workers,
        ago(state.last_commit),
    ]


def _print_summary(printer: Printer, description: Description) -> None:
    state = description.summary
    lag = at_least(state.lag, state.lag_is_lower_bound)
    oldest = f", the oldest {state.lag_seconds:.1f} s old" if state.lag else ""
    why = f": {state.why}" if state.why else ""
    done = f"{state.processed} processed, {state.skipped} skipped, {state.parked} parked"
    pairs = [
        ("GROUP", state.group),
        ("STATUS", printer.status(state.status) + why),
        ("WAY OUT", state.cure),
        ("ERROR", state.last_error),
        ("", cures.failed(state.group, state.failed_position) if state.failed_position else ""),
        ("POSITION", f"{state.position} of {state.last_position}"),
        ("LAG", f"{lag} messages{oldest}"),
        ("RATE", f"{state.rate:.1f} messages/s, last commit {ago(state.last_commit)}"),
        ("DONE", done),
        ("", cures.parked(state.group) if state.parked else ""),
        *_skipped_lines(description.skipped_types),
        ("WORKERS", str(state.workers)),
        *_horizon_lines(description.horizon),
        *_snapshot_lines(description.oldest_snapshot),
        *[
            ("ACTION", f"{each.action} by {each.actor} {ago(each.at)} {each.details['reason']}")
            for each in description.actions
        ],
    ]
    printer.block(pairs)


def _skipped_lines(types: dict[str, int]) -> list[tuple[str, str]]:
    listed = ", ".join(f"{count} {name}" for name, count in types.items())
    return [("SKIPPED", f"lately, without a handler: {listed}")] if types else []


def _horizon_lines(horizon: HorizonStatus) -> list[tuple[str, str]]:
    place = f"{horizon.horizon} of {horizon.last_position}"
    holder = horizon.held_by
    if holder is None:
        return [("HORIZON", place)]
    since = f"since {holder.since.isoformat()}" if holder.since else ""
    lines = [
        ("HORIZON", f"{place}, held back by {holder}"),
        ("", f"{holder.state} for {holder.seconds:.0f} s {since}, user {holder.user!r}"),
    ]
    if holder.channels is not None:
        lines.append(("", f"only channels {', '.join(holder.channels)} are held back"))
    return [*lines, ("", " ".join(holder.query.split())[:80])] if holder.query else lines


def _snapshot_lines(session: SnapshotSession | None) -> list[tuple[str, str]]:
    if session is None:
        return []
    who = f"pid {session.pid} {session.application!r}, user {session.user!r}"
    age = f"{session.state} for {session.seconds:.0f} s: {' '.join(session.query.split())[:80]}"
    return [("SNAPSHOT", f"the oldest is held by {who}"), ("", age)]


def _print_ranges(printer: Printer, ranges: list[RangeStatus]) -> None:
    rows = [
        [
            each.channel,
            slots(each.slot_from, each.slot_to),
            each.status,
            each.position,
            at_least(each.lag, each.lag_is_lower_bound),
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
