"""When the database goes away: what an error means for a session, and when to try again.

The drivers report a lost session in many ways: with a SQLSTATE, without one, as their own error
or as Django's, with the connection marked closed or not. `meaning` decides it for all callers.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import random
import time
from typing import Any

from django.db import DatabaseError, InterfaceError, OperationalError, connections

from .database import is_lost, sqlstate
from .exceptions import ConnectionLost

logger = logging.getLogger("outbox.worker")

LONGEST_DELAY = 10.0
"""Seconds between two tries to reach a database that is down, at most."""
OUTAGE_CLASSES = ("08", "53", "58")
"""SQLSTATE classes: connection, resources of the server, its operating system."""
OUTAGES = ("57P01", "57P02", "57P03", "57P04", "57P05", "25006", "25P03", "25P04")
"""Shutdown, crash, start-up, database dropped, idle timeout, read-only, transaction timeouts."""
CANCELLED = ("57014", "55P03")
"""Cancelled or timed out, lock not available."""
CONFLICT_CLASS = "40"
"""Serialization failure, deadlock."""


class Meaning(enum.Enum):
    """What an error means for a worker that did not expect it."""

    OUTAGE = "the session is gone, or the server does not serve it: connect anew, later"
    CANCELLED = "a statement was cancelled or timed out: wait, ask for less, go on"
    CONFLICT = "the transaction was ended in favour of another one: try it again"
    CHANGED = "the session worked before, and a handler may have changed it: connect anew"
    OTHER = "a mistake in a statement or in the code: a retry cannot help"


def meaning(
    error: BaseException, using: str, session: Any = None, *, has_worked: bool = False
) -> Meaning:
    """Return what an error means, raised by Django or by the driver itself on database `using`.

    `session`: the raw connection on which it was raised; Django may have replaced it already.
    `has_worked`: whether a batch was handled in that session.
    """
    if isinstance(error, ConnectionLost):
        return Meaning.OUTAGE
    if not isinstance(error, errors(using)):
        return Meaning.OTHER
    code = sqlstate(error)
    if code in CANCELLED:
        return Meaning.CANCELLED
    if code.startswith(CONFLICT_CLASS):
        return Meaning.CONFLICT
    current = connections[using].connection
    is_gone = is_lost(current) or (session is not None and current is not session)
    is_outage = _is_from_client(error, using) if not code else _is_outage_state(code)
    if is_outage or is_gone:
        return Meaning.OUTAGE
    return Meaning.CHANGED if has_worked else Meaning.OTHER


def _is_outage_state(code: str) -> bool:
    return code[:2] in OUTAGE_CLASSES or code in OUTAGES


def _is_from_client(error: BaseException, using: str) -> bool:
    """Return whether the driver found the session gone by itself: no SQLSTATE came from a server.

    When a server crashes, psycopg2 may raise the base class, DatabaseError.
    """
    driver = _driver(using)
    kinds = (OSError, OperationalError, InterfaceError)
    own_kinds = (driver.OperationalError, driver.InterfaceError)
    is_base = type(error) in (DatabaseError, driver.DatabaseError)
    return is_base or isinstance(error, (*kinds, *own_kinds))


def errors(using: str) -> tuple[type[Exception], ...]:
    """Return the errors that a session of database `using` can raise, the driver's own included."""
    return DatabaseError, InterfaceError, _driver(using).Error, OSError


def _driver(using: str) -> Any:
    """Return the module of the driver; Django's stubs do not know the attribute."""
    connection: Any = connections[using]
    return connection.Database


def discard(using: str) -> None:
    """Close the session of an alias for good, also when a pool would hand it on."""
    connection = connections[using]
    with contextlib.suppress(*errors(using)):
        if connection.connection is not None:
            connection.connection.close()
    with contextlib.suppress(*errors(using)):
        connection.close()


def note_changed(error: BaseException) -> float:
    """Log that a session is of no use any more; return the seconds to wait before the next one."""
    delay = retry_delay(1)
    logger.warning(
        "a statement of the worker failed in a session in which a handler was called, which may "
        "have changed its search_path, role or transaction: %s (new session in %.1f s)",
        str(error).strip(),
        delay,
    )
    return delay


def leave_recoded(using: str) -> None:
    """Log that a handler changed a session's client_encoding, and discard the session."""
    logger.warning(
        "a handler changed the client_encoding of the worker's session, in which text is read "
        "wrongly from then on: the worker connects anew; use SET LOCAL"
    )
    discard(using)


def note_cancelled(error: BaseException, tries: int, messages: int, size: int) -> float:
    """Log that a statement was cancelled; return the seconds to wait before the next one."""
    delay = retry_delay(tries)
    logger.warning(
        "the server cancelled a statement of the worker: %s (next try in %.1f s, with at "
        "most %d messages and %d bytes)",
        str(error).strip(),
        delay,
        messages,
        size,
    )
    return delay


class Outage:
    """How long the database has been away, and when to try again.

    `limit`: seconds after which ConnectionLost is raised; None for no limit.
    """

    def __init__(self, limit: float | None) -> None:
        self.limit = limit
        self.began: float | None = None
        self.answered = 0.0
        self.tries = 0

    def next_delay(self, error: Exception) -> float:
        """Return the seconds to wait before the next try; raises ConnectionLost at the limit."""
        now = time.monotonic()
        if self.began is None:
            self.began = now
            logger.warning("the connection to the database was lost: %s", str(error).strip())
        if self.limit is not None and now - self.began >= self.limit:
            raise ConnectionLost(f"the database was away for {now - self.began:.0f} s") from error
        self.tries += 1
        return retry_delay(self.tries)

    def note_answer(self) -> None:
        """Note that a new session was set up; the outage ends once it has done some work."""
        self.answered = time.monotonic()

    def end(self) -> None:
        """Note that the database does its work."""
        if self.began is not None:
            logger.warning("the database is back after %.1f s", self.answered - self.began)
            self.began, self.tries = None, 0


def retry_delay(tries: int) -> float:
    """Return the seconds to wait after the given number of failures: up to 10, with jitter."""
    longest = min(LONGEST_DELAY, 0.1 * 2.0 ** min(tries, 10))
    return random.uniform(0.5, 1) * longest
