"""Sessions of the database: what psycopg2 and psycopg 3 do differently, set-up, and LISTEN.

`raw` is the driver's own connection (`django_connection.connection`). The transaction states are
libpq's and have the same numbers in both drivers. What an error means is decided in `outages`.
"""

from __future__ import annotations

import contextlib
import functools
import random
import selectors
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any, cast

from django.db import DatabaseError, connections, transaction

from .sql import run_statement, scalar, statement

CONFLICTS = ("40001", "40P01")
"""Serialization failure, deadlock."""
SERVER_STATE = ("08", "40", "53", "57", "58")
"""Classes of SQLSTATE: connection, conflict, resources, operator, system."""
LACKS_RESOURCES = ("53", "58")
"""Classes of SQLSTATE: no room, no memory, no connection left; an error of the system."""
QUERY_CANCELED = "57014"
READ_ONLY = "25006"
SESSION_LIMITS = ("25P03", "25P04", "57P05")
"""A session exceeded the server's limit: idle in a transaction, in a transaction, idle."""
IDLE = 0
ACTIVE = 1
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


def parameter_reader(raw: Any, name: str) -> Callable[[], Any]:
    """Return a function that reads a setting that the server reports, without a round trip."""
    if hasattr(raw, "pgconn"):
        return functools.partial(raw.pgconn.parameter_status, name.encode())
    return functools.partial(raw.get_parameter_status, name)


def encoding_watch(raw: Any) -> Callable[[], bool]:
    """Return a function that says whether the session's client_encoding is another one than now."""
    read = parameter_reader(raw, "client_encoding")
    at_start = read()
    return lambda: not raw.closed and read() != at_start


def has_input(raw: Any) -> bool:
    """Return whether the server has sent something that was not read yet, such as a farewell."""
    with selectors.DefaultSelector() as selector:
        selector.register(fileno(raw), selectors.EVENT_READ)
        return bool(selector.select(0))


def is_lost(raw: Any) -> bool:
    """Return whether the connection is closed or of no use any more, without a round trip.

    Between two statements none is active: psycopg 3 leaves one so when an error, such as that of a
    handler's alarm, interrupts its wait for the server's answer.
    """
    return raw is None or bool(raw.closed) or status_reader(raw)() in (ACTIVE, UNKNOWN)


def sqlstate(error: BaseException | None) -> str:
    """Return the SQLSTATE of an error, as Django or the driver raises it; empty without one."""
    for each in (error, error.__cause__ if error is not None else None):
        code = getattr(each, "sqlstate", None) or getattr(each, "pgcode", None)
        if code:
            return str(code)
    return ""


def is_conflict(error: BaseException) -> bool:
    """Return whether an error is a conflict with another transaction: a retry can succeed."""
    return sqlstate(error) in CONFLICTS


def is_server_state(error: BaseException) -> bool:
    """Return whether an error is due to the state of the server, and not to what was asked of it.

    That is a lost connection, a conflict with another transaction, too few resources, a shutdown,
    or a system error. A cancelled statement (57014) is not: it may be too slow by itself.
    """
    code = sqlstate(error)
    return code[:2] in SERVER_STATE and code not in (QUERY_CANCELED, *SESSION_LIMITS)


def close_broken_connections(keep: Collection[str]) -> None:
    """Do for the connections of other aliases what Django does after each request.

    Closes those whose session has ended or is older than CONN_MAX_AGE, and forgets the queries that
    DEBUG collects. Connections with CONN_MAX_AGE = 0 stay open: a batch is no request.
    """
    for connection in connections.all(initialized_only=True):
        if connection.queries_log and not connection.force_debug_cursor:
            connection.queries_log.clear()
        if connection.alias in keep or connection.in_atomic_block:
            continue
        ends_at = connection.close_at if connection.settings_dict["CONN_MAX_AGE"] else None
        if connection.errors_occurred or (ends_at is not None and time.monotonic() >= ends_at):
            connection.close_if_unusable_or_obsolete()


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


def set_up(using: str, name: str) -> Any:
    """Name a new session for `pg_stat_activity`, and return its raw connection.

    The server then also ends a statement of it that waits for a lock after the process died.
    """
    with connections[using].cursor() as cursor:
        run_statement(cursor, "set_application_name", {"name": name})
    with contextlib.suppress(DatabaseError), connections[using].cursor() as cursor:
        run_statement(cursor, "notice_dead_clients")
    return connections[using].connection


def is_pooled(using: str) -> bool:
    """Return whether a pooler stands before the server, which loses LISTEN and session locks."""
    seen = scalar("see_backend", using)
    return bool(seen != backend_pid(connections[using].connection))


def is_same_database(alias: str, using: str) -> bool:
    """Return whether two aliases lead to one database: a lock of the one is seen by the other."""
    if alias == using:
        return True
    key = random.getrandbits(31)
    with transaction.atomic(using=alias):
        scalar("take_probe_lock", alias, key=key)
        return bool(scalar("see_probe_lock", using, key=key))


def wait_readable(descriptors: Iterable[int], seconds: float | None) -> list[int]:
    """Wait until a descriptor can be read, or the time is over; return those that can.

    Unlike `select()` it takes descriptors of any number.
    """
    kind = getattr(selectors, "PollSelector", selectors.DefaultSelector)
    with kind() as selector:
        for descriptor in descriptors:
            selector.register(descriptor, selectors.EVENT_READ)
        return [key.fd for key, _ in selector.select(seconds)]


class Listener:
    """The notifications that reach the session of an alias; raises Django's errors only.

    `interrupt`: a descriptor that ends a wait when it can be read.
    """

    def __init__(self, alias: str, interrupt: int | None = None) -> None:
        self.alias = alias
        self.interrupt = interrupt
        self.raw: Any = None
        self._names: list[str] = []
        self._heard: list[Any] = []

    @property
    def is_listening(self) -> bool:
        """Whether the session that listens is still there, and the alias's present one."""
        current = connections[self.alias].connection
        return self.raw is not None and current is self.raw and not is_lost(current)

    def listen(self, names: Iterable[str]) -> None:
        """Listen to NOTIFY channels, on the present session of the alias."""
        connection = connections[self.alias]
        connection.ensure_connection()
        self._names = list(names)
        self.raw = connection.connection
        self._heard = heard_notifications(self.raw)
        self._run("LISTEN")

    def take(self) -> bool:
        """Read the socket without waiting, forget the notifications; return whether any came."""
        with connections[self.alias].wrap_database_errors:
            return take_notifications(self.raw, self._heard) > 0

    def wait(self, seconds: float) -> bool:
        """Wait for a NOTIFY, the interruption or the time; return whether a NOTIFY came.

        Those that came with the results of statements since the last call count.
        """
        if self.take():
            return True
        with connections[self.alias].wrap_database_errors:
            descriptors = [fileno(self.raw)]
        if self.interrupt is not None:
            descriptors.append(self.interrupt)
        wait_readable(descriptors, seconds)
        return self.take()

    def unlisten(self) -> None:
        """Stop listening, so that the session can be used for something else."""
        if self.is_listening:
            self._run("UNLISTEN")
        self.forget()

    def forget(self) -> None:
        """Let go of the session, which is gone or about to be closed."""
        self._heard.clear()
        if hasattr(self.raw, "pgconn"):
            with contextlib.suppress(ValueError):
                self.raw.remove_notify_handler(self._heard.append)
        self.raw = None

    def _run(self, command: str) -> None:
        connection = connections[self.alias]
        quoted = (connection.ops.quote_name(name) for name in self._names)
        with connection.cursor() as cursor:
            cursor.execute("; ".join(f"{command} {name}" for name in quoted))
