"""How a worker without work waits: the reader's side of the wake-up protocol.

    awake -> idle (locks held, looked once more) -> asleep -> awake

An idle worker holds a shared lock per channel; a publisher that finds it sends a NOTIFY. The
worker takes the lock before its last look and sleeps only when no publisher is in flight that
may have looked before. So no wake-up is lost, and a busy system sends none.
"""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import Sequence

from django.db import connections

from .. import database, outages
from ..conf import settings
from ..groups import ConsumerGroup
from ..message_log import LogState
from ..sql import run_statement, scalar_reader
from . import cursors
from .idle_ranges import IdleRanges

logger = logging.getLogger("outbox.notifications")

SHORT_WAIT = 0.002
"""Seconds of the first wait for a publisher in flight."""
LINGER_STEP = 0.0005
"""Seconds between two reads of the sequence while a worker lingers."""
FIRST_POLL = 0.02
"""Seconds of the first wait when only polling; it doubles up to the poll interval."""
LONGEST_SHORT_WAIT = 0.05
"""Seconds of the longest wait for a publisher in flight."""
LOCKED_WAIT = 1.0
"""Seconds of the longest sleep while another session holds a range that has messages: when that
session dies, no NOTIFY is sent."""

POOLED = (
    "database %r is reached through a connection pooler, which breaks LISTEN: the worker polls, at "
    "most every %s s. Set OUTBOX['LISTEN'] to False, or to the alias of a direct connection."
)
OTHER_DATABASE = (
    "OUTBOX['LISTEN'] names %r, which leads to another database than %r: the worker polls, at "
    "most every %s s. Name an alias of a direct connection to the same database."
)


class Wakeups:
    """Waits until there may be something to do.

    `listen`: as the setting LISTEN. `poll_interval`, `linger`: seconds; as the settings.
    """

    def __init__(
        self,
        groups: Sequence[ConsumerGroup],
        using: str,
        *,
        listen: bool | str | None = None,
        poll_interval: float | None = None,
        linger: float | None = None,
    ) -> None:
        chosen = settings()
        self.groups = groups
        self.using = using
        self.channels = sorted({channel for group in groups for channel in group.channels})
        self.listen = chosen.listen if listen is None else listen
        self.poll_interval = chosen.poll_interval if poll_interval is None else poll_interval
        self.linger = chosen.linger if linger is None else linger
        self.alias = self.listen if isinstance(self.listen, str) else using
        self._pipe = os.pipe()
        weakref.finalize(self, _close, *self._pipe)
        os.set_blocking(self._pipe[0], False)
        os.set_blocking(self._pipe[1], False)
        self.listener = database.Listener(self.alias, self._pipe[0])
        self._can_listen = bool(self.listen)
        self.misses_cursors = False
        """Whether the last wait found that cursors of the groups are missing."""
        self._locked: list[int] = []
        self._is_idle = False
        self._idle_since: float | None = None
        self._short_waits = 0

    def wait(self, state: LogState, idle: IdleRanges) -> None:
        """Wait once, after the caller found nothing up to the horizons; it then claims again.

        `idle`: the ranges that have nothing up to there; another range with messages is held by
        another session.
        """
        now = time.monotonic()
        self.misses_cursors = False
        if self._idle_since is None:
            self._idle_since = now
        if now - self._idle_since < self.linger:
            self._linger(state, self._idle_since + self.linger)
        elif not self._can_listen:
            self._poll(state, idle)
        elif state.is_held:
            # Take no idle lock until the horizon moves: with it each publisher would send a NOTIFY.
            self._drop_locks()
            self._wait_for_publisher()
        elif not self._is_idle:
            self._become_idle()
        else:
            self._sleep(self._until_due(state, idle))
            self._short_waits = 0

    def reset(self) -> None:
        """Note that there was something to do."""
        self._idle_since = None
        self._short_waits = 0
        self._drop_locks()
        if self.listener.is_listening:
            # Unread notifications would fill the memory of this client or the server's queue.
            self.listener.take()

    def pause(self, seconds: float) -> None:
        """Wait without the database; `interrupt` ends it early."""
        database.wait_readable([self._pipe[0]], seconds)

    def interrupt(self) -> None:
        """End the present wait and all later ones; safe in a signal handler."""
        os.write(self._pipe[1], b"x")

    def unlisten(self) -> None:
        """Release locks and UNLISTEN before the connection returns to a pool."""
        if self.listener.is_listening:
            self._drop_locks()
            self.listener.unlisten()

    def close(self) -> None:
        """Forget the listening session, with its locks; another wait makes a new one."""
        self.listener.forget()
        if self.alias != self.using:
            outages.discard(self.alias)
        self._can_listen = bool(self.listen)
        self._is_idle = False

    def _linger(self, state: LogState, end: float) -> None:
        last_position = scalar_reader("read_last_position", self.using)
        while time.monotonic() < end:
            self._sleep(LINGER_STEP)
            if state.is_held or last_position() > state.last_position:
                return

    def _become_idle(self) -> None:
        """Take the idle locks; the caller then looks once more for what came before them."""
        if not self._listen():
            return
        with connections[self.alias].cursor() as cursor:
            run_statement(cursor, "take_idle_locks", {"channels": self.channels})
            tries = cursor.fetchall()
        self._locked = [key for key, is_taken in tries if is_taken]
        self._is_idle = True
        if len(self._locked) < len(tries):
            self._drop_locks()
            self._sleep(SHORT_WAIT)

    def _drop_locks(self) -> None:
        if not self._is_idle:
            return
        self._is_idle = False
        with connections[self.alias].cursor() as cursor:
            run_statement(cursor, "drop_idle_locks", {"keys": self._locked})

    def _listen(self) -> bool:
        """Listen, once per session; False when a pooler or the wrong database makes it useless."""
        if self.listener.is_listening:
            return True
        if self.listen is True and database.is_pooled(self.alias):
            logger.warning(POOLED, self.using, self.poll_interval)
            self._can_listen = False
        elif not database.is_same_database(self.alias, self.using):
            logger.error(OTHER_DATABASE, self.alias, self.using, self.poll_interval)
            self._can_listen = False
        else:
            with connections[self.alias].cursor() as cursor:
                run_statement(cursor, "signal_names", {"channels": self.channels})
                names = [name for (name,) in cursor.fetchall()]
            self.listener.listen(names)
        return self._can_listen

    def _wait_for_publisher(self) -> None:
        self._sleep(min(LONGEST_SHORT_WAIT, SHORT_WAIT * 2**self._short_waits))
        self._short_waits = min(self._short_waits + 1, 16)

    def _poll(self, state: LogState, idle: IdleRanges) -> None:
        if state.is_held:
            return self._wait_for_publisher()
        self._sleep(min(self._until_due(state, idle), FIRST_POLL * 2**self._short_waits))
        self._short_waits = min(self._short_waits + 1, 16)

    def _until_due(self, state: LogState, idle: IdleRanges) -> float:
        due, is_locked, self.misses_cursors = cursors.next_look(
            self.groups, state, idle, self.using
        )
        if self.misses_cursors:
            names = ", ".join(group.name for group in self.groups)
            logger.warning(
                "cursor rows of %s were deleted: for channels without any row, new ones are "
                "created at the start of the group",
                names,
            )
            return 0.0
        longest = min(self.poll_interval, LOCKED_WAIT) if is_locked else self.poll_interval
        return longest if due is None else min(due, longest)

    def _sleep(self, seconds: float) -> None:
        """Wait for a NOTIFY, an interruption or the time, whichever is first."""
        if self.listener.raw is None:
            self.pause(seconds)
        else:
            self.listener.wait(seconds)


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
