"""The lock of the log under which a segment is attached, swapped or dropped.

Publishers that arrive while a session waits for that lock queue behind it. So workers pause
first (each claim takes `outbox_stand_aside_v1()`'s lock shared, so a waiting maintenance stops new
claims and outlasts the open ones); then the log's lock is waited for only a moment, given up, and
tried again later, until the time is up.

Locks in order: maintenance, stand-aside, the log.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator

from django.db import DatabaseError, ProgrammingError, connections, transaction

from ..exceptions import LogIsBusy
from ..sql import one_row, run_statement, scalar

LOCK_SECONDS = 0.1
"""How long publishers may queue behind one try."""
ASIDE_SECONDS = 2.0
"""How long new claims may queue behind one try, while open batches end."""
PAUSE_SECONDS = 0.2
"""Between two tries, about; as long as the try took when that was longer."""
GIVE_UP_SECONDS = 60.0
"""After how long LogIsBusy is raised."""
LOCK_NOT_AVAILABLE = "55P03"
DEADLOCK = "40P01"


def run(
    step: Callable[[], object],
    using: str,
    *,
    exclusive: bool = True,
    give_up: float | None = None,
) -> None:
    """Run a step in a transaction that holds the log's exclusive lock; then it commits.

    `exclusive=False`: the step itself takes the locks that it needs. `give_up`: seconds, as
    GIVE_UP_SECONDS when left out. Raises LogIsBusy, which names the sessions that hold the log.
    """
    limit = GIVE_UP_SECONDS if give_up is None else give_up
    end = time.monotonic() + limit
    while True:
        began = time.monotonic()
        try:
            with transaction.atomic(using=using):
                aside = min(ASIDE_SECONDS, max(LOCK_SECONDS, end - began))
                one_row("limit_lock_wait", using, timeout=f"{aside * 1000:.0f}ms")
                one_row("stand_aside", using)
                one_row("limit_lock_wait", using, timeout=f"{LOCK_SECONDS * 1000:.0f}ms")
                if exclusive:
                    with connections[using].cursor() as cursor:
                        run_statement(cursor, "lock_log")
                step()
            return
        except DatabaseError as error:
            state = getattr(error.__cause__, "pgcode", None) or getattr(
                error.__cause__, "sqlstate", None
            )
            if state not in (LOCK_NOT_AVAILABLE, DEADLOCK):
                raise
            if time.monotonic() >= end:
                raise LogIsBusy(seconds=limit, holders=_holders(using)) from error
        took = time.monotonic() - began
        time.sleep(random.uniform(0.5, 1.5) * max(PAUSE_SECONDS, took))


@contextlib.contextmanager
def alone(using: str, *, wait: bool = False) -> Iterator[bool]:
    """Hold the lock of maintenance for this session; gives False when another session has it.

    `wait`: wait for it instead.
    """
    statement = "take_maintenance_lock" if wait else "try_maintenance_lock"
    is_alone = bool(scalar(statement, using))
    try:
        yield is_alone
    finally:
        if is_alone:
            with contextlib.suppress(ProgrammingError):
                scalar("release_maintenance_lock", using)


def _holders(using: str) -> str:
    with connections[using].cursor() as cursor:
        run_statement(cursor, "see_log_users")
        rows = cursor.fetchall()
    return "; ".join(
        f"backend {pid} ({application or 'no application name'}, {user}, {state}, "
        f"{seconds:.0f} s in its transaction)"
        for pid, application, user, state, seconds in rows[:3]
    )
