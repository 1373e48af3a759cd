"""Pause and resume a group: its cursors stay where they are, and its messages wait in the log.

A pause takes effect after the current batches; it ends by itself at its time.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence

from django.db import connections, transaction

from ..conf import log_alias
from ..consuming.cursor_rows import CursorRow, known_group
from ..exceptions import InvalidPause
from ..groups import ConsumerGroup
from ..sql import one_row, run_statement, scalar
from . import action_log, cursor_locks

FOREVER = datetime.datetime(9999, 12, 31, tzinfo=datetime.UTC)
"""The end of a pause that only `resume` ends."""


def pause(
    group: ConsumerGroup | str,
    *,
    until: datetime.datetime | None = None,
    channels: Iterable[str] | None = None,
    reason: str = "",
    using: str | None = None,
    execute: bool = True,
) -> list[CursorRow]:
    """Pause a group and return its cursors as they were; waits for the current batches.

    `until`: a time with zone; None: until `resume`. `channels`: only these. `execute=False`:
    change nothing.

    Raises InvalidPause, UnknownChannel for an unknown channel, and UnknownGroup.
    """
    using = log_alias(using)
    if until is not None and (until.tzinfo is None or until <= scalar("read_clock", using)):
        raise InvalidPause(until=until.isoformat())
    end = min(until or FOREVER, FOREVER)
    with transaction.atomic(using=using):
        rows = cursor_locks.rows_of(group, channels, using, lock=execute)
        if not execute:
            transaction.set_rollback(True, using)
            return rows
        with connections[using].cursor() as cursor:
            ids = [row.id for row in rows]
            run_statement(cursor, "pause_cursors", {"ids": ids, "until": end})
        _record("pause", group, rows, end, reason, using)
    return rows


def resume(
    group: ConsumerGroup | str,
    *,
    channels: Iterable[str] | None = None,
    reason: str = "",
    using: str | None = None,
    execute: bool = True,
) -> list[CursorRow]:
    """Resume a paused group and return the cursors that were paused, as they were.

    `channels`: only these. `execute=False`: change nothing. Raises UnknownChannel for an unknown
    channel, and UnknownGroup.
    """
    using = log_alias(using)
    with transaction.atomic(using=using):
        now = scalar("read_clock", using)
        held = cursor_locks.rows_of(group, channels, using, lock=execute)
        rows = [row for row in held if row.paused_until is not None and row.paused_until > now]
        if not execute:
            transaction.set_rollback(True, using)
            return rows
        with connections[using].cursor() as cursor:
            run_statement(cursor, "resume_cursors", {"ids": [row.id for row in rows]})
        one_row("wake_workers", using, channels=sorted({row.channel for row in rows}))
        if rows:
            _record("resume", group, rows, None, reason, using)
    return rows


def _record(
    action: str,
    group: ConsumerGroup | str,
    rows: Sequence[CursorRow],
    until: datetime.datetime | None,
    reason: str,
    using: str,
) -> None:
    old = {
        f"{row.channel} {row.slot_from}-{row.slot_to}": row.paused_until.isoformat()
        for row in rows
        if row.paused_until is not None
    }
    new = {"paused_until": until.isoformat() if until else None}
    action_log.record(
        action, known_group(group, using), using=using, old=old, new=new, reason=reason
    )
