"""The log: append messages, read the horizon, read a range of one channel.

The horizon is read first, in a statement of its own and outside the transaction that reads
the rows; the rows are read under a newer snapshot. Reading both at once could skip messages
of a transaction that commits in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db import connections

from . import events
from .encoding import encode
from .sql import run_statement

Row = tuple[int, str | None, str, str, str, str]
"""Position, key, type, and payload, headers and time of publication as text."""


def append(draft: events.Draft, using: str) -> int:
    """Store one message in the current transaction and return its position."""
    parameters = {
        "channel": draft.channel,
        "key": draft.key,
        "type": draft.type,
        "payload": encode(draft.payload, draft.type),
        "headers": encode(draft.headers, "headers") if draft.headers else "{}",
    }
    with connections[using].cursor() as cursor:
        run_statement(cursor, "append_message", parameters)
        return int(cursor.fetchone()[0])


def append_many(drafts: Sequence[events.Draft], using: str) -> list[int]:
    """Store messages with one statement and return their positions, in the given order."""
    if not drafts:
        return []
    parameters = {"messages": encode(drafts, "batch")}
    with connections[using].cursor() as cursor:
        run_statement(cursor, "append_messages", parameters)
        return [position for (position,) in cursor.fetchall()]


def horizon(using: str, *, count_own_floor: bool = True) -> int:
    """Return the highest position at or below which nothing can appear any more.

    `count_own_floor=False` leaves out the floor of this very session: for tests that publish
    and consume within one transaction, which sees its own rows.
    """
    return int(_scalar("read_horizon" if count_own_floor else "read_horizon_within", using))


def last_position(using: str) -> int:
    """Return the highest position drawn so far, 0 when none was."""
    return int(_scalar("read_last_position", using))


def read(
    using: str, channel: str, *, after: int, until: int, slots: tuple[int, int], most: int
) -> list[Row]:
    """Return the next messages of a range of slots, in position order.

    `after` is exclusive, `until` inclusive and never above a horizon that was read before.
    """
    parameters: dict[str, Any] = {
        "channel": channel,
        "after": after,
        "until": until,
        "slot_from": slots[0],
        "slot_to": slots[1],
        "most": most,
    }
    with connections[using].cursor() as cursor:
        run_statement(cursor, "read_messages", parameters)
        rows: list[Row] = cursor.fetchall()
    return rows


def _scalar(name: str, using: str) -> Any:
    with connections[using].cursor() as cursor:
        run_statement(cursor, name)
        return cursor.fetchone()[0]
