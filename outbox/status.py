"""What is late, by how much, and why."""

from __future__ import annotations

import dataclasses
import datetime

from django.db import connections

from .queries import statement

LAG_BOUND = 1_000_000
"""Pending messages are counted up to here, per cursor."""


@dataclasses.dataclass(frozen=True, slots=True)
class GroupStatus:
    """One consumer group at a glance."""

    group: str
    position: int
    """The lowest position of its cursors."""
    lag: int
    """Messages not handled yet; at `LAG_BOUND` it is a lower bound."""
    processed: int
    attempts: int
    last_error: str
    last_commit: datetime.datetime


def list_groups(using: str = "default") -> list[GroupStatus]:
    """Return the state of every group that has a cursor, by name."""
    with connections[using].cursor() as cursor:
        cursor.execute(statement("list_groups"), {"bound": LAG_BOUND})
        return [GroupStatus(*row) for row in cursor.fetchall()]
