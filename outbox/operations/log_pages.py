"""The log page by page, and one message of it.

Pages go by position, so that none counts the log. A filter on key or type has no index of its own:
a page looks at a bounded number of messages, and says how far it looked.
"""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any, NamedTuple

from .. import message_log
from ..models import Message
from ..sql import all_rows
from .reset_targets import ResetTargets
from .tail import Filter

WALKED = 20_000
"""Messages that a page with a filter on key or type looks at."""
EVERYTHING = 2**63 - 1


class Row(NamedTuple):
    """A message without its payload."""

    position: int
    channel: str
    key: str | None
    type: str
    created_at: datetime.datetime


@dataclasses.dataclass(frozen=True, slots=True)
class LogPage:
    """Some messages, the newest first."""

    rows: list[Row]
    older: int | None
    """Look for older messages before this position; None: there are none."""
    newer: int | None
    """Look for newer messages after this position; None: this is the end of the log."""
    walked: int
    """Messages that were looked at."""
    horizon: int
    """Groups see the messages up to here."""


def page_before(chosen: Filter, before: int | None, most: int, using: str) -> LogPage:
    """Return the last messages before a position, None: of the log."""
    horizon = message_log.horizon(using)
    start = EVERYTHING if before is None else before
    rows, ended, walked, is_full = _walk("walk_log_back", chosen, start, most, using)
    older = rows[-1].position if len(rows) == most else ended
    return LogPage(rows, older if is_full else None, _newest(rows, before), walked, horizon)


def page_after(chosen: Filter, after: int, most: int, using: str) -> LogPage:
    """Return the first messages after a position."""
    horizon = message_log.horizon(using)
    rows, ended, walked, is_full = _walk("walk_log_forward", chosen, after, most, using)
    newer = rows[-1].position if len(rows) == most else ended
    rows.reverse()
    older = rows[-1].position if rows else after + 1
    return LogPage(rows, older, newer if is_full else None, walked, horizon)


def place_of(time: datetime.datetime, using: str) -> int:
    """Return the position of the first message published at a time or later; raises InvalidTime
    for a time without zone."""
    return ResetTargets(using).position_before(time) + 1


@dataclasses.dataclass(frozen=True, slots=True)
class Reader:
    """What became of a message in a group."""

    group: str
    position: int
    """Where the group's range of the message stands."""
    parked_id: int | None
    """The row of the parked message; None when it is not parked."""
    reason: str
    error: str


def readers(message: Message, using: str) -> list[Reader]:
    """Return the groups with a cursor for a message, by name."""
    place = {"channel": message.channel, "slot": message.slot, "position": message.position}
    return [Reader(*row) for row in all_rows("see_readers", using, **place)]


def neighbours(message: Message, most: int, using: str) -> list[Row]:
    """Return the messages of the same key around a message, the newest first.

    Looks at WALKED messages of the channel before it, and as many behind it.
    """
    chosen = Filter(channel=message.channel, key=message.key)
    older = _walk("walk_log_back", chosen, message.position, most, using)[0]
    newer = _walk("walk_log_forward", chosen, message.position, most, using)[0]
    own = Row(message.position, message.channel, message.key, message.type, message.created_at)
    return [*newer[::-1], own, *older]


def _walk(
    query: str, chosen: Filter, start: int, most: int, using: str
) -> tuple[list[Row], int | None, int, bool]:
    """Return rows, where the walk ended, over how many rows, and whether more may follow."""
    is_filtered = chosen.key is not None or chosen.type is not None
    limits: dict[str, Any] = {"start": start, "most": most}
    limits["walked"] = WALKED if is_filtered else most
    found = all_rows(query, using, **limits, **dataclasses.asdict(chosen))
    ended, walked = found[0][:2]
    rows = [Row(*row[2:]) for row in found if row[2] is not None]
    return rows, ended, walked, walked == limits["walked"] or len(rows) == most


def _newest(rows: list[Row], before: int | None) -> int | None:
    if before is None:
        return None
    return rows[0].position if rows else before - 1
