"""Wait until a group has handled what was published: to read one's own writes.

A waiting session holds a shared lock of the group and listens; a worker that commits a batch
sends a NOTIFY only when it finds that lock. A batch that looked just before the lock was taken
sends none, so the waiting session also looks by itself, at intervals that double: it never waits
twice as long.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

from django.db import connections

from .. import groups as group_registry
from .. import message_log
from ..conf import is_number, log_alias, settings
from ..database import Listener, is_pooled, is_same_database
from ..exceptions import NotCaughtUp, OutboxError, UnknownGroup, WaitInTransaction
from ..groups import ConsumerGroup
from ..sql import scalar
from .cursor_rows import known_group, see

FIRST_WAIT = 0.005
"""Seconds of the first wait; it doubles."""


def wait_for(
    group: ConsumerGroup | str, position: int, timeout: float = 10.0, *, using: str | None = None
) -> bool:
    """Wait until a group has handled every message up to `position`; return whether it has.

    Parked and skipped messages count as handled. `timeout`: seconds; 0 only looks. `using`: the
    database alias.

    Raises WaitInTransaction inside `atomic()`, UnknownGroup, and OutboxError for a position that
    is no whole number or a time that is no number.
    """
    using = log_alias(using)
    is_position = is_number(position, -(2**63), 2**63 - 1, whole=True)
    if not is_position or not is_number(timeout, -math.inf):
        raise OutboxError(
            f"wait_for(position={position!r}, timeout={timeout!r}): give the position that "
            "publish() returned, and seconds."
        )
    name = known_group(group, using)
    _refuse_transaction(name, using)
    if _has_handled(name, position, using):
        return True
    deadline = time.monotonic() + timeout
    if timeout <= 0:
        return False
    with _Wait(name, using) as waiting:
        delay = FIRST_WAIT
        while not _has_handled(name, position, using):
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return False
            if not waiting.wait(min(delay, remaining)):
                delay *= 2
    return True


@contextlib.contextmanager
def caught_up(
    *groups: ConsumerGroup | str, timeout: float = 10.0, using: str | None = None
) -> Iterator[None]:
    """At the end of the block wait until the groups have handled what was published in it.

    Also works as a decorator. The block must commit what it publishes: it may hold `atomic()`
    blocks, and must not lie in one. `timeout`: seconds for all groups together. When the block
    raises, nothing is waited for.

    Raises NotCaughtUp at the timeout, WaitInTransaction inside `atomic()`, UnknownGroup, and
    OutboxError for a time that is no number.
    """
    using = log_alias(using)
    if not is_number(timeout, -math.inf):
        raise OutboxError(f"caught_up(timeout={timeout!r}): give seconds.")
    names = [known_group(group, using) for group in groups]
    for name in names:
        _refuse_transaction(name, using)
    yield
    deadline = time.monotonic() + timeout
    for name in names:
        position = _last_visible(name, using)
        if not wait_for(name, position, max(0.0, deadline - time.monotonic()), using=using):
            raise NotCaughtUp(group=name, position=position, seconds=timeout)


class _Wait:
    """Waits for a NOTIFY of a group; on a session that cannot listen, only for the time."""

    def __init__(self, group: str, using: str) -> None:
        self.group = group
        self.using = using
        listen = settings().listen
        self.alias = listen if isinstance(listen, str) else using
        self.listener = Listener(self.alias)
        self.can_listen = bool(listen)
        self.is_locked = False

    def __enter__(self) -> _Wait:
        self.can_listen = (
            self.can_listen
            and not is_pooled(self.alias)
            and is_same_database(self.alias, self.using)
        )
        if self.can_listen:
            self.listener.listen([scalar("waiter_signal", self.alias, group=self.group)])
            self._lock()
        return self

    def __exit__(self, *_: object) -> None:
        if self.listener.is_listening and self.is_locked:
            scalar("drop_waiter_lock", self.alias, group=self.group)
        self.listener.unlisten()

    def wait(self, seconds: float) -> bool:
        """Wait for a NOTIFY, at most `seconds`, and return whether one came."""
        if not self.can_listen:
            time.sleep(seconds)
            return False
        has_heard = self.listener.wait(seconds)
        if not self.is_locked:
            self._lock()
        return has_heard

    def _lock(self) -> None:
        """Try the lock: a committing worker may hold it for a moment; the next round retries."""
        self.is_locked = scalar("take_waiter_lock", self.alias, group=self.group)


def _has_handled(group: str, position: int, using: str) -> bool:
    """The horizon is read first, in a statement of its own: nothing appears below it later."""
    channels = _channels(group, using)
    parameters: dict[str, Any] = {
        "group": group,
        "channels": channels,
        "position": position,
        "horizon": message_log.horizon(using, channels),
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
