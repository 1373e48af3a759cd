"""What is late, by how much, and why: the groups at a glance, and one of them in full."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from django.db import connections

from .. import groups, message_log
from ..conf import log_alias
from ..exceptions import UnknownGroup
from ..groups import ConsumerGroup
from ..sql import all_rows, array, one_row, run_statement
from . import action_log as actions
from . import cures
from .action_log import Action
from .range_status import SEVERITY, RangeStatus, Status, read_ranges
from .sessions import (
    HorizonStatus,
    Session,
    SnapshotSession,
    floor_holders,
    horizon_of,
    oldest_snapshot,
    worker_sessions,
)

LAG_BUDGET = 500_000
"""Pending messages that one look counts, over all cursors; what is beyond them is not counted."""

LATEST_ACTIONS = 5
LATEST_MESSAGES = 10_000
"""Latest messages of a channel to search for types that the group skipped."""


@dataclasses.dataclass(frozen=True, slots=True)
class GroupStatus:
    """One consumer group at a glance."""

    group: str
    status: Status
    why: str
    cure: str
    """What an operator can do about it, as a command where there is one; else empty."""
    position: int
    """The lowest position of its ranges that have something pending, else of all."""
    last_position: int
    """The highest position allocated so far, in any channel."""
    lag: int
    lag_is_lower_bound: bool
    lag_seconds: float
    rate: float
    parked: int
    workers: int
    """Sessions that work for the group."""
    last_commit: datetime.datetime | None
    """None when no worker has ever run for the group."""
    processed: int
    skipped: int
    attempts: int
    last_error: str
    failed_position: int | None
    """Of the message whose error that is."""


@dataclasses.dataclass(frozen=True, slots=True)
class Overview:
    """All groups at a glance, and how far the log can be read."""

    groups: list[GroupStatus]
    """Those with a cursor, by name."""
    never_run: list[str]
    """Declared groups for which no worker has run, by name."""
    horizon: HorizonStatus


@dataclasses.dataclass(frozen=True, slots=True)
class Description:
    """All about one group."""

    summary: GroupStatus
    ranges: list[RangeStatus]
    workers: list[Session]
    horizon: HorizonStatus
    """Of its channels."""
    actions: list[Action]
    """The last few things that operators did to it, the newest first."""
    oldest_snapshot: SnapshotSession | None
    """The session that keeps the most dead rows, such as a dump or a report."""
    skipped_types: dict[str, int]
    """Types without a handler and how many messages it passed over, of the last 10,000 of each
    channel; empty for a group that is not declared."""


def list_groups(using: str | None = None) -> list[GroupStatus]:
    """Return the state of every group that has a cursor, by name."""
    return overview(using).groups


def overview(using: str | None = None, *, lag_budget: int = LAG_BUDGET) -> Overview:
    """Return the state of every group, and of the horizon.

    `lag_budget`: pending messages that are counted, over all cursors.
    """
    using = log_alias(using)
    sessions, holders = worker_sessions(using), floor_holders(using)
    ranges = read_ranges(None, sessions, holders, lag_budget, using)
    last = message_log.last_position(using)
    grouped = itertools.groupby(ranges, key=lambda each: each.group)
    found = [_summary(name, list(parts), sessions, last) for name, parts in grouped]
    known = {each.group for each in found}
    declared = {group.name for group in groups.all_groups()}
    return Overview(found, sorted(declared - known), horizon_of(holders, last))


def describe(
    group: ConsumerGroup | str, using: str | None = None, *, lag_budget: int = LAG_BUDGET
) -> Description:
    """Return all about one group; raises UnknownGroup.

    `lag_budget`: pending messages that are counted, over all of its cursors.
    """
    using = log_alias(using)
    name = group if isinstance(group, str) else group.name
    sessions, holders = worker_sessions(using), floor_holders(using)
    ranges = read_ranges(name, sessions, holders, lag_budget, using)
    channels = {each.channel for each in ranges} or None
    last_position = message_log.last_position(using)
    if not ranges:
        name = groups.get(name).name
    return Description(
        summary=_summary(name, ranges, sessions, last_position)
        if ranges
        else _never_run(name, last_position, using),
        ranges=ranges,
        workers=[session for session in sessions if session.serves(name)],
        horizon=horizon_of(holders, last_position, channels),
        actions=actions.latest(name, LATEST_ACTIONS, using),
        oldest_snapshot=oldest_snapshot(using),
        skipped_types=_skipped_types(name, ranges, using),
    )


@dataclasses.dataclass(frozen=True, slots=True)
class FailingRange:
    """A slot range whose next message failed, and which waits until that is tried again."""

    group: str
    channel: str
    position: int
    """Of the failed message."""
    attempts: int
    error: str
    messages: int
    """Pending messages of the range, the failed one included."""
    is_lower_bound: bool

    def __str__(self) -> str:
        behind = f"{self.messages}{'+' if self.is_lower_bound else ''}"
        return (
            f"group {self.group}, channel {self.channel}: the message at {self.position} failed "
            f"(attempt {self.attempts}: {self.error}); {behind} messages are left, it included"
        )


def failing_ranges(chosen: Iterable[ConsumerGroup], using: str) -> list[FailingRange]:
    """Return the ranges of some groups that wait behind a failed message, by group and channel."""
    names = [group.name for group in chosen]
    with connections[using].cursor() as cursor:
        run_statement(cursor, "failing_ranges", {"groups": names, "most": LAG_BUDGET})
        return [FailingRange(*row) for row in cursor.fetchall()]


def check(
    group: ConsumerGroup | str,
    *,
    lag: int | None = None,
    lag_seconds: float | None = None,
    parked: int | None = None,
    using: str | None = None,
) -> tuple[GroupStatus, list[str]]:
    """Return the state of a group and a sentence for each threshold that it is past.

    A cursor that is invalid or behind retention is past every threshold.

    `lag`: messages; `lag_seconds`: age of the oldest pending one; `parked`: parked messages.
    None: no threshold. Raises UnknownGroup.
    """
    using = log_alias(using)
    # Do not report a group that is not declared any more: no worker can reduce its lag.
    budget = LAG_BUDGET if lag is None else max(LAG_BUDGET, lag + 1)
    state = describe(group, using, lag_budget=budget).summary
    limits = {"lag": lag, "lag_seconds": lag_seconds, "parked": parked}
    past = [
        f"{name.replace('_', '-')} {getattr(state, name):.12g} is above {limit:.12g}"
        for name, limit in limits.items()
        if limit is not None and state.status != "undeclared" and getattr(state, name) > limit
    ]
    if state.status in ("invalid", "behind retention"):
        past.insert(0, state.why)
    return state, past


def _summary(
    group: str, ranges: Sequence[RangeStatus], sessions: Sequence[Session], last_position: int
) -> GroupStatus:
    ranges = [each for each in ranges if each.status != "undeclared"] or ranges
    worst = max(ranges, key=lambda each: SEVERITY.index(each.status))
    failing = max(ranges, key=lambda each: (each.attempts, bool(each.last_error)))
    pending = [each for each in ranges if each.lag]
    return GroupStatus(
        group=group,
        status=worst.status,
        why=worst.why,
        cure=worst.cure,
        position=min(each.position for each in pending or ranges),
        last_position=last_position,
        lag=sum(each.lag for each in ranges),
        lag_is_lower_bound=any(each.lag_is_lower_bound for each in ranges),
        lag_seconds=max(each.lag_seconds for each in ranges),
        rate=round(sum(each.rate for each in ranges), 1),
        parked=sum(each.parked for each in ranges),
        workers=sum(session.serves(group) for session in sessions),
        last_commit=max(each.last_commit for each in ranges),
        processed=sum(each.processed for each in ranges),
        skipped=sum(each.skipped for each in ranges),
        attempts=failing.attempts,
        last_error=failing.last_error,
        failed_position=failing.failed_position,
    )


def _skipped_types(name: str, ranges: Sequence[RangeStatus], using: str) -> dict[str, int]:
    """Return the types that a group passed over lately, by the handlers that it has now."""
    try:
        group = groups.get(name)
    except UnknownGroup:
        return {}
    skipped: collections.Counter[str] = collections.Counter()
    ends = {
        channel: min((each.position for each in ranges if each.channel == channel), default=0)
        for channel in group.channels
    }
    places: dict[str, Any] = {"channels": array(ends), "ends": array(ends.values())}
    for channel, type_name, count in all_rows("count_types", using, most=LATEST_MESSAGES, **places):
        if type_name not in group.routes(channel):
            skipped[type_name] += count
    return dict(sorted(skipped.items()))


def _never_run(name: str, last_position: int, using: str) -> GroupStatus:
    """A group that is declared and has no cursor yet: all that it will begin with is pending."""
    group = groups.get(name)
    channels = group.channels if group.start == "earliest" else ()
    look: dict[str, Any] = {"channels": array(channels), "most": LAG_BUDGET}
    found = one_row("see_backlog", using, **look) if channels else None
    lag, is_lower_bound, seconds = found or (0, False, 0.0)
    return GroupStatus(
        group=name,
        status="stopped",
        why="no worker has run for it yet",
        cure=cures.start(name),
        position=0 if channels else last_position,
        last_position=last_position,
        lag=lag,
        lag_is_lower_bound=is_lower_bound,
        lag_seconds=seconds or 0.0,
        rate=0.0,
        parked=0,
        workers=0,
        last_commit=None,
        processed=0,
        skipped=0,
        attempts=0,
        last_error="",
        failed_position=None,
    )
