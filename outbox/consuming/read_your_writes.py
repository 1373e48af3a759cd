"""Wait until a group has handled what was published: to read one's own writes.

Who waits holds a shared lock of the group and listens; a worker that commits a batch sends a
NOTIFY only when it finds that lock. A batch that looked just before the lock was taken sends none,
so the waiter also looks by itself, at intervals that double: it never waits twice as long.
"""

from __future__ import annotations

import contextlib
import selectors
import time
from collections.abc import Iterator
from typing import Any

from django.db import connections

from .. import database, message_log
from .. import groups as group_registry
from ..conf import settings
from ..exceptions import NotCaughtUp, UnknownGroup, WaitInTransaction
from ..groups import ConsumerGroup
from ..sql import run_statement, scalar
from .cursor_rows import known_group, see

FIRST_WAIT = 0.005
"""Seconds of the first wait; it doubles."""


def wait_for(
    group: ConsumerGroup | str, position: int, timeout: float = 10.0, *, using: str = "default"
) -> bool:
    """Wait until a group has handled every message up to `position`; tell whether it has.

    Parked and skipped messages count as handled. `timeout`: seconds; 0 only looks. `using`: the
    database alias.

    Raises WaitInTransaction inside `atomic()`, and UnknownGroup.
    """
    name = known_group(group, using)
    _refuse_transaction(name, using)
    if _has_handled(name, position, using):
        return True
    deadline = time.monotonic() + timeout
    if timeout <= 0:
        return False
    with _Ear(name, using) as ear:
        delay = FIRST_WAIT
        while not _has_handled(name, position, using):
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return False
            if not ear.listen(min(delay, remaining)):
                delay *= 2
    return True


@contextlib.contextmanager
def caught_up(
    *groups: ConsumerGroup | str, timeout: float = 10.0, using: str = "default"
) -> Iterator[None]:
    """At the end of the block wait until the groups have handled what was published in it.

    Also works as a decorator. The block must commit what it publishes: it may hold `atomic()`
    blocks, and must not lie in one. `timeout`: seconds for all groups together. When the block
    raises, nothing is waited for.

    Raises NotCaughtUp at the timeout, WaitInTransaction inside `atomic()`, and UnknownGroup.
    """
    names = [known_group(group, using) for group in groups]
    for name in names:
        _refuse_transaction(name, using)
    yield
    deadline = time.monotonic() + timeout
    for name in names:
        position = _last_visible(name, using)
        if not wait_for(name, position, max(0.0, deadline - time.monotonic()), using=using):
            raise NotCaughtUp(group=name, position=position, seconds=timeout)


class _Ear:
    """Listens for a group; on a connection that cannot listen, it only waits."""

    def __init__(self, group: str, using: str) -> None:
        self.group = group
        listen = settings().listen
        self.connection = connections[listen if isinstance(listen, str) else using]
        self.is_listening = bool(listen)
        self.is_locked = False
        self.heard: list[Any] = []

    def __enter__(self) -> _Ear:
        if self.is_listening:
            self.connection.ensure_connection()
            self.raw = self.connection.connection
            self.is_listening = self._is_direct()
        if self.is_listening:
            self.heard = database.heard_notifications(self.raw)
            self._run("LISTEN")
            self._lock()
        return self

    def __exit__(self, *_: object) -> None:
        if not self.is_listening or database.is_lost(self.raw):
            return
        if self.is_locked:
            with self.connection.cursor() as cursor:
                run_statement(cursor, "drop_waiter_lock", {"group": self.group})
        self._run("UNLISTEN")
        database.forget_notifications(self.raw, self.heard)

    def listen(self, seconds: float) -> bool:
        """Wait for a NOTIFY, at most so long, and tell whether one came."""
        if not self.is_listening:
            time.sleep(seconds)
            return False
        if database.take_notifications(self.raw, self.heard):
            return True
        with selectors.DefaultSelector() as selector:
            selector.register(database.fileno(self.raw), selectors.EVENT_READ)
            selector.select(seconds)
        if not self.is_locked:
            self._lock()
        return bool(database.take_notifications(self.raw, self.heard))

    def _is_direct(self) -> bool:
        """Tell whether no pooler stands before the server: LISTEN and locks get lost in one."""
        with self.connection.cursor() as cursor:
            run_statement(cursor, "see_backend")
            return bool(cursor.fetchone()[0] == database.backend_pid(self.raw))

    def _lock(self) -> None:
        """A try: a worker that looks at this moment has the key; then the next round takes it."""
        with self.connection.cursor() as cursor:
            run_statement(cursor, "take_waiter_lock", {"group": self.group})
            self.is_locked = cursor.fetchone()[0]

    def _run(self, command: str) -> None:
        with self.connection.cursor() as cursor:
            run_statement(cursor, "waiter_signal", {"group": self.group})
            name = self.connection.ops.quote_name(cursor.fetchone()[0])
            cursor.execute(f"{command} {name}")


def _has_handled(group: str, position: int, using: str) -> bool:
    """The horizon is read first, in a statement of its own: nothing appears below it later."""
    parameters: dict[str, Any] = {
        "group": group,
        "channels": _channels(group, using),
        "position": position,
        "horizon": message_log.horizon(using),
    }
    return bool(scalar("has_handled", using, **parameters))


def _last_visible(group: str, using: str) -> int:
    return int(scalar("last_visible", using, channels=_channels(group, using)))


def _channels(group: str, using: str) -> list[str]:
    try:
        return list(group_registry.get(group).channels)
    except UnknownGroup:
        return sorted({row.channel for row in see(group, using)})


def _refuse_transaction(group: str, using: str) -> None:
    if connections[using].in_atomic_block:
        raise WaitInTransaction(group=group)
