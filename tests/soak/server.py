"""What the rack itself asks the server, and how it ends prepared transactions."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from django.db import DatabaseError, InterfaceError, connection

PENDING = """
    SELECT c."group", c.channel, c.slot_from, c.position, m.position, c.attempts, c.last_error
    FROM outbox_cursor AS c
    CROSS JOIN LATERAL (
        SELECT position
        FROM outbox_message
        WHERE channel = c.channel AND position > c.position
          AND slot BETWEEN c.slot_from AND c.slot_to
        ORDER BY position
        LIMIT 1
    ) AS m
"""
PLACES = "SELECT id, position FROM outbox_cursor ORDER BY id"
PRESENT = 'SELECT DISTINCT "group" FROM outbox_cursor'
LEFT = """
    SELECT 'session', pid::text, application_name, state, left(query, 100)
    FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND application_name <> 'rack'
    UNION ALL
    SELECT 'lock', pid::text, locktype, mode, classid::text
    FROM pg_locks WHERE locktype = 'advisory'
"""
PREPARED = """
    SELECT gid FROM pg_prepared_xacts WHERE prepared <= clock_timestamp() - interval '{} seconds'
"""


def query(statement: str) -> list[Any]:
    """Run a statement in this thread's session, in a new one when it has ended; return the rows."""
    for _ in range(1000):
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return list(cursor.fetchall()) if cursor.description else []
        except (DatabaseError, InterfaceError):
            connection.close()
            time.sleep(0.1)
    raise RuntimeError(f"the server does not come back: {statement}")


def wait(predicate: Callable[[], bool], seconds: float) -> bool:
    """Wait until something is so; tell whether it came to be."""
    deadline = time.monotonic() + seconds
    while not predicate():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.3)
    return True


def end_prepared(seconds: float) -> None:
    """Commit the transactions prepared so long ago: a publisher that was killed ends none itself.

    Their floors hold back the horizon of every group.
    """
    for (name,) in query(PREPARED.format(seconds)):
        with contextlib.suppress(DatabaseError, InterfaceError), connection.cursor() as cursor:
            cursor.execute(f"COMMIT PREPARED '{name}'")
