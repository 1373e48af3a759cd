"""The cursor rows of a group, read without a lock."""

from __future__ import annotations

import datetime
from typing import Any, NamedTuple

from django.db import connections

from .. import groups as group_registry
from ..encoding import is_storable
from ..groups import ConsumerGroup
from ..sql import run_statement, with_zones


class CursorRow(NamedTuple):
    """A cursor as an operator sees it."""

    id: int
    channel: str
    slot_from: int
    slot_to: int
    position: int
    paused_until: datetime.datetime | None


def see(group: str, using: str) -> list[CursorRow]:
    """Return the cursors of a group without a lock, by channel and slots."""
    return read("see_cursors", group, None, using)


def read(query: str, group: str, channels: list[str] | None, using: str) -> list[CursorRow]:
    """Return the rows of a statement about the cursors of a group, by channel and slots."""
    parameters: dict[str, Any] = {"group": group, "channels": channels}
    with connections[using].cursor() as cursor:
        run_statement(cursor, query, parameters)
        rows = [CursorRow(*with_zones(row)) for row in cursor.fetchall()]
    return sorted(rows, key=lambda row: row[1:3])


def known_group(group: ConsumerGroup | str, using: str) -> str:
    """Return the name of a group that is declared or has a cursor; raises UnknownGroup."""
    if isinstance(group, ConsumerGroup) or not isinstance(group, str) or not is_storable(group):
        return group_registry.get(group).name
    with connections[using].cursor() as cursor:
        run_statement(cursor, "has_cursor", {"group": group})
        has_cursor = cursor.fetchone()[0]
    return group if has_cursor else group_registry.get(group).name
