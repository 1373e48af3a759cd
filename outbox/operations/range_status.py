"""How each range of slots of a group is: what waits, since when, and whether it moves.

A status is computed from movement, not from thresholds on a lag. The one constant in it is how
long a healthy worker may take to commit a batch.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from django.db import connections

from .. import positions
from ..conf import settings
from ..consuming.outcomes import RATE_SECONDS
from ..groups import ConsumerGroup, all_groups
from ..sql import run_statement, with_zones
from . import cures
from .pauses import FOREVER
from .sessions import Holder, Session, floor_holders, worker_sessions

LEAST_BOUND = 1000
"""Pending messages that are counted for a cursor in any case."""

Status = Literal[
    "undeclared",
    "ok",
    "behind",
    "replaying",
    "paused",
    "failing",
    "stalled",
    "stopped",
    "behind retention",
    "invalid",
]
SEVERITY: tuple[Status, ...] = get_args(Status)
"""A group has the last of these that one of its ranges has."""


@dataclasses.dataclass(frozen=True, slots=True)
class RangeStatus:
    """One cursor: a range of slots of a channel."""

    group: str
    channel: str
    slot_from: int
    slot_to: int
    status: Status
    why: str
    """A sentence; empty when all is well."""
    cure: str
    """What an operator can do about it, as a command where there is one; else empty."""
    position: int
    lag: int
    """Messages not handled yet, the ones above the horizon included."""
    lag_is_lower_bound: bool
    """Whether there may be more of them than were counted."""
    lag_seconds: float
    """Age of the oldest of them, 0 when there is none."""
    rate: float
    """Messages per second, averaged over the last half minute or so."""
    processed: int
    """Messages handled since the last reset."""
    skipped: int
    """Messages without a handler, given up or skipped since the last reset."""
    parked: int
    attempts: int
    """Failed attempts of the message that is next in the range."""
    last_error: str
    failed_position: int | None
    """Of the message that is next in the range, when it has failed."""
    owner: str
    """The process that is handling a batch of the range, and its session; else empty."""
    generation: int
    last_commit: datetime.datetime


def read_ranges(
    group: str | None,
    sessions: Sequence[Session],
    holders: Sequence[Holder],
    budget: int,
    using: str,
) -> list[RangeStatus]:
    """Return the ranges of a group, or of all, by group, channel and slots.

    `holders`: as `floor_holders`. `budget`: pending messages that are counted, over all of them.
    """
    parameters = {
        "group": group,
        "budget": budget,
        "least": min(LEAST_BOUND, budget),
    }
    patience = _patience()
    with connections[using].cursor() as cursor:
        run_statement(cursor, "see_ranges", parameters)
        names = [column[0] for column in cursor.description]
        rows = [
            RangeRow(**dict(zip(names, with_zones(row), strict=True))) for row in cursor.fetchall()
        ]
    return [_range(row, sessions, holders, patience.get(row.group, patience[None])) for row in rows]


def current(group: str, budget: int, using: str) -> list[RangeStatus]:
    """Return the ranges of a group as they are now; `budget`: see `read_ranges`."""
    return read_ranges(group, worker_sessions(using), floor_holders(using), budget, using)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RangeRow:
    """A row of the statement `see_ranges`."""

    id: int
    group: str
    channel: str
    slot_from: int
    slot_to: int
    position: int
    max_position: int
    generation: int
    processed: int
    skipped: int
    parked: int
    rate: float
    attempts: int
    last_error: str
    failed_position: int | None
    retry_at: datetime.datetime | None
    paused_until: datetime.datetime | None
    leased_until: datetime.datetime | None
    leased_by: str
    last_served_at: datetime.datetime
    last_commit_at: datetime.datetime
    messages: int
    is_lower_bound: bool
    oldest: datetime.datetime | None
    now: datetime.datetime
    last_position: int
    removed_to: int


def _range(
    row: RangeRow, sessions: Sequence[Session], holders: Sequence[Holder], patience: float
) -> RangeStatus:
    owner = _owner(row, sessions)
    status, why = _judge(row, owner, sessions, patience)
    held_by = next((each for each in holders if each.holds_back([row.channel])), None)
    is_blocked = status == "stalled" and not owner and held_by and held_by.floor < row.last_position
    blocker = held_by if is_blocked else None
    if blocker is not None:
        why += f"; the horizon is held back by {blocker}"
    failed_position = row.failed_position if row.last_error else None
    # The server's clock may have been set back since the last commit.
    idle_seconds = max(0.0, (row.now - row.last_commit_at).total_seconds())
    return RangeStatus(
        group=row.group,
        channel=row.channel,
        slot_from=row.slot_from,
        slot_to=row.slot_to,
        status=status,
        why=why,
        cure=cures.of_range(row.group, status, failed_position, blocker),
        position=row.position,
        lag=max(row.messages, int(row.oldest is not None)),
        lag_is_lower_bound=row.is_lower_bound,
        lag_seconds=max(0.0, (row.now - row.oldest).total_seconds()) if row.oldest else 0.0,
        rate=round(row.rate * math.exp(-idle_seconds / RATE_SECONDS), 1),
        processed=row.processed,
        skipped=row.skipped,
        parked=row.parked,
        attempts=row.attempts,
        last_error=row.last_error,
        failed_position=failed_position,
        owner=owner,
        generation=row.generation,
        last_commit=row.last_commit_at,
    )


def _owner(row: RangeRow, sessions: Sequence[Session]) -> str:
    for session in sessions:
        if row.id in session.claimed:
            return f"{session.process}, backend {session.pid}"
    leased = row.leased_until is not None and row.leased_until > row.now
    return row.leased_by if leased else ""


def _judge(
    row: RangeRow, owner: str, sessions: Sequence[Session], patience: float
) -> tuple[Status, str]:
    """Return the status of a range and why it is so."""
    if row.position > row.last_position:
        place = row.group, row.channel, row.position, row.last_position
        return "invalid", f"{positions.cursor_detail(*place)}. Run this SQL: {positions.MEND}"
    if why := _undeclared(row.group, row.channel):
        return "undeclared", why
    if row.position < row.removed_to:
        return "behind retention", (
            f"messages up to position {row.removed_to} were removed and the range stands at "
            f"{row.position}: run `outbox restore`, or `outbox reset {row.group} "
            f"--channel {row.channel} --to-earliest --execute`"
        )
    if row.paused_until is not None and row.paused_until > row.now:
        forever = row.paused_until == FOREVER
        return "paused", "until resumed" if forever else f"until {row.paused_until.isoformat()}"
    if row.oldest is None:
        return "ok", ""
    if not owner and not any(session.may_serve(row.group) for session in sessions):
        return "stopped", "messages wait and no worker is connected"
    if row.last_error:
        tried = f"attempt {row.attempts} failed" if row.attempts else "it waits"
        return "failing", f"{tried}: {row.last_error}"
    starts = [row.last_commit_at, row.oldest, row.paused_until, row.leased_until]
    waited = (row.now - max(start for start in starts if start is not None)).total_seconds()
    if waited > patience:
        has = f"{owner} is handling it" if owner else "no worker is handling it"
        return "stalled", f"messages wait and nothing was committed for {waited:.0f} s; {has}"
    if row.position < row.max_position:
        return "replaying", f"up to position {row.max_position}"
    if row.oldest <= row.last_served_at:
        return "behind", "messages wait since before the last batch began"
    return "ok", ""


def _undeclared(name: str, channel: str) -> str:
    """Return why no worker of this code reads a range; empty when the code declares it."""
    channels = {each for group in all_groups() if group.name == name for each in group.channels}
    if not channels:
        return f"the code declares no such group; delete it with: outbox forget {name}"
    if channel not in channels:
        return (
            "the group does not read this channel any more; delete its cursors with: "
            f"outbox forget {name} --channel {channel}"
        )
    return ""


def _patience() -> dict[str | None, float]:
    """Return by group how many seconds a working worker may take until it commits a batch."""
    cycle = settings().poll_interval + settings().batch_seconds
    slowest = {group.name: max(_timeouts(group), default=0.0) for group in all_groups()}
    return {None: cycle} | {name: cycle + seconds for name, seconds in slowest.items()}


def _timeouts(group: ConsumerGroup) -> Iterable[float]:
    for channel in group.channels:
        for route in group.routes(channel).values():
            yield route.timeout or 0.0
