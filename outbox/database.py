"""What psycopg2 and psycopg 3 do differently, in one place.

Every function takes the driver's own connection (`django_connection.connection`). The
transaction states are libpq's and have the same numbers in both drivers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from .exceptions import BrokenTransaction
from .sql import statement

CONFLICTS = ("40001", "40P01")
"""Serialization failure, deadlock."""
IDLE = 0
IN_TRANSACTION = 2
IN_ERROR = 3
UNKNOWN = 4


def use_iso_dates(connection: Any, **_: Any) -> None:
    """Let a new connection write times as ISO 8601, as psycopg2 does of its own accord.

    psycopg 3 keeps the server's DateStyle and cannot read a time with zone in any other.
    `connection`: Django's; this is a receiver of its signal `connection_created`.
    """
    if connection.vendor != "postgresql":
        return
    if (connection.connection.info.parameter_status("DateStyle") or "").startswith("ISO"):
        return
    with connection.connection.cursor() as cursor:
        cursor.execute(statement("use_iso_dates"))


def status_reader(raw: Any) -> Callable[[], int]:
    """Return a function that reads libpq's transaction state, without a round trip."""
    if hasattr(raw, "pgconn"):
        pgconn = raw.pgconn
        return lambda: int(pgconn.transaction_status)
    return cast(Callable[[], int], raw.get_transaction_status)


def transaction_check(connection: Any) -> Callable[[], None]:
    """Return a function that raises BrokenTransaction when a handler left the transaction broken.

    `connection`: Django's.
    """
    status = status_reader(connection.connection)

    def check() -> None:
        if status() == IN_ERROR or connection.needs_rollback:
            raise BrokenTransaction()

    return check


def is_lost(raw: Any) -> bool:
    """Tell whether the connection is closed or broken, without a round trip."""
    return raw is None or bool(raw.closed) or status_reader(raw)() == UNKNOWN


def is_conflict(error: BaseException) -> bool:
    """Tell whether a transaction was ended for the sake of another one: it is tried again at once.

    `error`: as Django raises it.
    """
    cause = error.__cause__
    code = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    return code in CONFLICTS


def backend_pid(raw: Any) -> int:
    """Return the process id of the server's end of the connection."""
    if hasattr(raw, "pgconn"):
        return int(raw.pgconn.backend_pid)
    return int(raw.get_backend_pid())


def fileno(raw: Any) -> int:
    """Return the socket of the connection, to wait on."""
    return int(raw.fileno())


def heard_notifications(raw: Any) -> list[Any]:
    """Return the list that the driver fills with the notifications it comes across.

    They arrive with the results of other statements; what is still on the socket does not
    count yet. Call it once for a connection.
    """
    if hasattr(raw, "pgconn"):
        heard: list[Any] = []
        raw.add_notify_handler(heard.append)
        return heard
    return cast(list[Any], raw.notifies)


def take_notifications(raw: Any, heard: list[Any]) -> int:
    """Read the socket without waiting; return how many notifications came, and forget them."""
    if hasattr(raw, "pgconn"):
        raw.pgconn.consume_input()
        while (notification := raw.pgconn.notifies()) is not None:
            heard.append(notification)
    else:
        raw.poll()
    count = len(heard)
    heard.clear()
    return count


def forget_notifications(raw: Any, heard: list[Any]) -> None:
    """End what `heard_notifications` began."""
    heard.clear()
    if hasattr(raw, "pgconn"):
        raw.remove_notify_handler(heard.append)
