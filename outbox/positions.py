"""Whether sequence, log, cursors and functions agree, and the statement that makes them agree.

A cursor above the sequence passes over new messages; a sequence below the log's last row makes each
publish fail. Backups without the log's rows and logical upgrades (rows come, sequences do not) lead
there. Nothing may work with such a log before it is mended.
"""

from __future__ import annotations

from typing import NamedTuple

from django.db import connections

from .exceptions import ImpossiblePosition
from .sql import one_row, run_statement, scalar, statement

MEND = statement("mend_positions") + ";"
"""Moves cursors back to what they have not handled, and the sequence above all positions."""


class Fault(NamedTuple):
    """A fault of the log, and the SQL statement that mends it."""

    detail: str
    fix: str


def find_faults(using: str) -> list[Fault]:
    """Return how the positions of a migrated database disagree; empty when they agree."""
    with connections[using].cursor() as cursor:
        run_statement(cursor, "read_last_position")
        run_statement(cursor, "see_last_positions", {"seen": cursor.fetchone()[0]})
        last, last_row = cursor.fetchone()
        run_statement(cursor, "see_cursors_above")
        above = cursor.fetchall()
        run_statement(cursor, "see_missing_ranges")
        missing = cursor.fetchall()
    faults = [Fault(cursor_detail(*row), MEND) for row in above]
    faults += [_range_fault(*row) for row in missing]
    if last_row is not None and last_row > last:
        detail = (
            f"the sequence outbox_message_position_seq is at {last}, below the log's last row at "
            f"{last_row}: publishing fails with a duplicate key"
        )
        faults.insert(0, Fault(detail, MEND))
    return faults


def cursor_detail(group: str, channel: str, position: int, last: int) -> str:
    """Return the sentence about a cursor above the last position."""
    return (
        f"the cursor of group {group!r} in channel {channel!r} is at {position}, above the log's "
        f"last position {last}: new messages up to there would be passed over"
    )


def _range_fault(group: str, channel: str, slots: int, fix: str) -> Fault:
    detail = (
        f"group {group!r} has no cursor for {slots} slots of channel {channel!r}: messages there "
        f"are not handled; once all its cursors there are deleted, its next worker creates them "
        f"at the start of the group, and `manage.py outbox reset {group}` moves them"
    )
    return Fault(detail, fix)


def refuse_faults(using: str) -> None:
    """Raise ImpossiblePosition when the positions of a database disagree."""
    for fault in find_faults(using):
        raise ImpossiblePosition(detail=fault.detail, fix=fault.fix)


def misplaced_functions(using: str) -> Fault | None:
    """Return which functions look for the log in a schema where it is not; None: none."""
    names, fix = one_row("list_misplaced_functions", using) or (None, "")
    if not names:
        return None
    detail = (
        f"{len(names)} functions look for the log in another schema, as after ALTER SCHEMA "
        f"RENAME: {', '.join(names)}"
    )
    return Fault(detail, fix)


def origin_triggers(using: str) -> Fault | None:
    """Return which triggers of the log leave out sessions whose role is replica; None: none."""
    names: list[str] | None = scalar("list_origin_triggers", using)
    if not names:
        return None
    detail = (
        f"not enabled ALWAYS: {', '.join(names)}; readers may skip messages that are written with "
        "session_replication_role = replica"
    )
    enable = ", ".join(f"ENABLE ALWAYS TRIGGER {name}" for name in names)
    return Fault(detail, f"ALTER TABLE ONLY outbox_message {enable};")
