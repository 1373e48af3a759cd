"""The cursor rows of a group as operators see them, and held for a change from outside.

Whoever changes a group from outside holds its rows until commit: it waits for the batches in hand,
and no batch can straddle the change. The shape of the group is locked first, so that a split or
merge at the same time cannot slip by.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import Any, NamedTuple

from django.db import connections

from . import cursors
from . import groups as group_registry
from .exceptions import InvalidReset, UnknownGroup
from .groups import ConsumerGroup
from .queries import run_statement, with_zones


class CursorRow(NamedTuple):
    """A cursor as an operator sees it."""

    id: int
    channel: str
    slot_from: int
    slot_to: int
    position: int
    paused_until: datetime.datetime | None


def hold(
    group: ConsumerGroup | str, channels: Iterable[str] | None, using: str, *, lock: bool = True
) -> list[CursorRow]:
    """Return the cursors of a group, locked until commit unless told otherwise.

    Creates those that a declared group lacks. `channels`: only these. Raises UnknownGroup, and
    InvalidReset for a channel in which the group has no cursor.
    """
    name = known_group(group, using)
    declared = _declared(group)
    if declared is not None:
        cursors.register([declared], using)
    wanted = list(channels) if channels is not None else None
    present = {row.channel for row in see(name, using)}
    if unknown := sorted(set(wanted or ()) - present):
        raise InvalidReset(
            f"Group {name!r} has no cursor in channel {unknown[0]!r}; its channels: "
            f"{', '.join(sorted(present))}."
        )
    if lock:
        for channel in sorted(wanted or present):
            one_row("lock_group_shape", using, group=name, channel=channel)
    return _rows("lock_cursors" if lock else "see_cursors", name, wanted, using)


def see(group: str, using: str) -> list[CursorRow]:
    """Return the cursors of a group without a lock, by channel and slots."""
    return _rows("see_cursors", group, None, using)


def one_row(query: str, using: str, **parameters: Any) -> tuple[Any, ...] | None:
    """Run a statement and return its first row, if any."""
    with connections[using].cursor() as cursor:
        run_statement(cursor, query, parameters)
        row: tuple[Any, ...] | None = cursor.fetchone()
    return None if row is None else with_zones(row)


def scalar(query: str, using: str, **parameters: Any) -> Any:
    """Run a statement and return the first column of its first row, None without one."""
    row = one_row(query, using, **parameters)
    return None if row is None else row[0]


def _declared(group: ConsumerGroup | str) -> ConsumerGroup | None:
    if isinstance(group, ConsumerGroup):
        return group
    try:
        return group_registry.get(group)
    except UnknownGroup:
        return None


def _rows(query: str, group: str, channels: list[str] | None, using: str) -> list[CursorRow]:
    with connections[using].cursor() as cursor:
        run_statement(cursor, query, {"group": group, "channels": channels})
        rows = [CursorRow(*with_zones(row)) for row in cursor.fetchall()]
    return sorted(rows, key=lambda row: row[1:3])


def known_group(group: ConsumerGroup | str, using: str) -> str:
    """Return the name of a group that is declared or has a cursor; raises UnknownGroup."""
    if isinstance(group, ConsumerGroup):
        return group.name
    with connections[using].cursor() as cursor:
        run_statement(cursor, "has_cursor", {"group": group})
        has_cursor = cursor.fetchone()[0]
    return group if has_cursor else group_registry.get(group).name
