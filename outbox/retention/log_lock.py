"""The lock of the log under which a segment is attached, swapped or dropped.

Publishers that arrive while somebody waits for that lock queue behind it. So it is waited for only
a moment, then given up and tried again later, until the time is up.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from django.db import DatabaseError, connections, transaction

from ..exceptions import LogIsBusy
from ..sql import one_row, run_statement

LOCK_SECONDS = 0.1
"""How long publishers may queue behind one try."""
PAUSE_SECONDS = 0.2
"""Between two tries, about."""
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
        try:
            with transaction.atomic(using=using):
                one_row("limit_lock_wait", using, timeout=f"{int(LOCK_SECONDS * 1000)}ms")
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
        time.sleep(random.uniform(0.5, 1.5) * PAUSE_SECONDS)


def _holders(using: str) -> str:
    with connections[using].cursor() as cursor:
        run_statement(cursor, "see_log_users")
        rows = cursor.fetchall()
    return "; ".join(
        f"backend {pid} ({application or 'no application name'}, {user}, {state}, "
        f"{seconds:.0f} s in its transaction)"
        for pid, application, user, state, seconds in rows[:3]
    )
