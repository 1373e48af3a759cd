"""Sessions of the server that matter to the log: workers, and those who hold the horizon back."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterable

from django.db import ProgrammingError, connections, transaction

from .. import message_log
from ..conf import log_alias
from ..exceptions import CannotEndSession
from ..sql import one_row, run_statement, with_zones
from . import action_log

PREFIX = "outbox:"
CUT = "..."


@dataclasses.dataclass(frozen=True, slots=True)
class Session:
    """A worker's connection to the database."""

    pid: int
    """Of the server's process."""
    name: str
    """The application name: which groups, and which process on which host."""
    address: str
    since: datetime.datetime
    state: str
    transaction_seconds: float | None
    """Age of its transaction; None when it has none."""
    claimed: list[int]
    """The cursors that it has claimed."""

    @property
    def process(self) -> str:
        """Host and process id of the worker."""
        return self.name.rpartition(" ")[2]

    def serves(self, group: str) -> bool:
        """Return whether the session is known to work for the group."""
        names = "," + self.name.removeprefix(PREFIX).rpartition(" ")[0] + ","
        return any(f",{shown}," in names for shown in _shown(group))

    def may_serve(self, group: str) -> bool:
        """Return whether the session may work for the group: its list of groups may be cut off."""
        return CUT in self.name or self.serves(group)


@dataclasses.dataclass(frozen=True, slots=True)
class Holder:
    """A transaction that has published, or is about to: nothing above its floor can be read yet."""

    floor: int
    pid: int | None
    """Of the server's process; None for a prepared transaction."""
    application: str
    user: str
    state: str
    since: datetime.datetime | None
    """When its transaction began, or was prepared; None when this role may not see it."""
    seconds: float
    """Since then."""
    query: str
    prepared: str
    """The name of the prepared transaction, else empty."""
    channels: list[str] | None
    """The channels with a cursor that it holds back; None: every channel."""

    def holds_back(self, channels: Iterable[str] | None) -> bool:
        """Return whether one of some channels, which have cursors, is held back; None: of all."""
        return (
            self.channels is None or channels is None or not set(channels).isdisjoint(self.channels)
        )

    def __str__(self) -> str:
        if self.prepared:
            return f"prepared transaction {self.prepared!r}"
        return f"pid {self.pid} {self.application!r}"


@dataclasses.dataclass(frozen=True, slots=True)
class HorizonStatus:
    """How far the log can be read, and who holds it there."""

    horizon: int
    last_position: int
    held_by: Holder | None
    """The session or prepared transaction with the lowest floor, when that is below the head."""


@dataclasses.dataclass(frozen=True, slots=True)
class SnapshotSession:
    """A session with a snapshot: no dead row that is newer can be removed."""

    pid: int
    application: str
    user: str
    state: str
    seconds: float
    """Age of its transaction."""
    query: str


def oldest_snapshot(using: str | None = None) -> SnapshotSession | None:
    """Return the other session with the oldest snapshot; None when there is none to be seen."""
    row = one_row("oldest_snapshot", log_alias(using))
    return None if row is None else SnapshotSession(*row)


def worker_sessions(using: str | None = None) -> list[Session]:
    """Return the connected workers, by process id."""
    using = log_alias(using)
    with connections[using].cursor() as cursor:
        run_statement(cursor, "see_workers")
        rows = cursor.fetchall()
    return [Session(*with_zones(row)) for row in rows]


def floor_holders(using: str | None = None) -> list[Holder]:
    """Return the sessions that hold a floor: the lowest first, then the oldest."""
    using = log_alias(using)
    with connections[using].cursor() as cursor:
        run_statement(cursor, "see_floors")
        return [Holder(*with_zones(row)) for row in cursor.fetchall()]


def see_horizon(using: str | None = None, channels: Iterable[str] | None = None) -> HorizonStatus:
    """Return the horizon, and who holds it back: of some channels, or the lowest of all."""
    using = log_alias(using)
    return horizon_of(floor_holders(using), message_log.last_position(using), channels)


def horizon_of(
    holders: Iterable[Holder], last_position: int, channels: Iterable[str] | None = None
) -> HorizonStatus:
    """Return the horizon that follows from the floors, the lowest first; as `see_horizon`."""
    held_by = next((each for each in holders if each.holds_back(channels)), None)
    if held_by is not None and held_by.floor >= last_position:
        held_by = None
    return HorizonStatus(
        horizon=held_by.floor if held_by else last_position,
        last_position=last_position,
        held_by=held_by,
    )


def find_holder(pid: int, using: str | None = None) -> Holder:
    """Return the session that holds a floor; raises CannotEndSession when it holds none."""
    for holder in floor_holders(using):
        if holder.pid == pid:
            return holder
    raise CannotEndSession(pid=pid, cause="it holds no floor of this log any more")


def end_session(
    pid: int,
    since: datetime.datetime | None,
    *,
    reason: str,
    using: str | None = None,
) -> None:
    """End a session that holds the horizon back: its transaction is rolled back.

    `since`: when its transaction began; a session that is in another one by now is left alone.
    Raises CannotEndSession.
    """
    using = log_alias(using)
    holder = find_holder(pid, using)
    with transaction.atomic(using=using):
        old = {"pid": pid, "application": holder.application, "user": holder.user}
        action_log.record("end session", "", using=using, old=old, reason=reason)
        try:
            ended = one_row("end_session", using, pid=pid, since=since)
        except ProgrammingError as error:
            cause = f"{error}".strip().partition("\n")[0] + "; GRANT pg_signal_backend to this role"
            raise CannotEndSession(pid=pid, cause=cause) from error
        if ended is None:
            raise CannotEndSession(pid=pid, cause="its transaction has ended")


def _shown(group: str) -> set[str]:
    """Return how the server may show a group's name, of which it keeps only the ASCII."""
    parts = [(chr(byte) if byte < 128 else f"\\x{byte:02x}") for byte in group.encode()]
    return {group, "".join(parts), "".join(part if len(part) == 1 else "?" for part in parts)}
