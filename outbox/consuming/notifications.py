"""How a worker without work waits: the reader's side of the wake-up protocol.

    awake -> idle (locks held, looked once more) -> asleep -> awake

An idle worker holds a shared lock per channel; a publisher that finds it sends a NOTIFY. The
worker takes the lock before its last look and sleeps only when no publisher is in flight that
may have looked before. So no wake-up is lost, and a busy system sends none.
"""

from __future__ import annotations

import logging
import os
import select
import time
import weakref
from collections.abc import Sequence
from typing import Any

from django.db import connections

from .. import database, message_log
from ..conf import settings
from ..groups import ConsumerGroup
from ..sql import run_statement
from . import cursors

logger = logging.getLogger("outbox.notifications")

SHORT_WAIT = 0.002
"""Seconds of the first wait for a publisher in flight."""
LINGER_STEP = 0.0005
"""Seconds between two looks at the sequence while a worker lingers."""
FIRST_POLL = 0.02
"""Seconds of the first wait when only polling; it doubles up to the poll interval."""
LONGEST_SHORT_WAIT = 0.05
"""Seconds of the longest wait for a publisher in flight."""

POOLED = (
    "a connection pooler stands before database %r, and LISTEN gets lost in one: polling, at most "
    "every %s s. Set OUTBOX['LISTEN'] to False, or to the alias of a direct connection."
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
        self._raw: Any = None
        self._heard: list[Any] = []
        self._locked: list[int] = []
        self._is_idle = False
        self._idle_since: float | None = None
        self._short_waits = 0

    def wait(self, horizon: int) -> None:
        """Wait a step, after nothing was found up to `horizon`; the caller then looks again."""
        now = time.monotonic()
        if self._idle_since is None:
            self._idle_since = now
        if now - self._idle_since < self.linger:
            self._await_position_above(horizon, self._idle_since + self.linger)
        elif not self.listen:
            self._poll(horizon)
        elif message_log.last_position(self.using) > horizon:
            self._wait_for_publisher()
        elif not self._is_idle:
            self._become_idle()
        else:
            self._sleep(self._until_due())
            self._short_waits = 0

    def stay_awake(self) -> None:
        """Note that there was something to do."""
        self._idle_since = None
        self._short_waits = 0
        if self._is_idle:
            self._drop_locks()

    def pause(self, seconds: float) -> None:
        """Wait without the database; `interrupt` ends it early."""
        select.select([self._pipe[0]], [], [], seconds)

    def interrupt(self) -> None:
        """End the present wait and all later ones; safe in a signal handler."""
        os.write(self._pipe[1], b"x")

    def is_lost(self) -> bool:
        """Tell whether the listening connection is closed or broken."""
        return self._raw is not None and database.is_lost(connections[self.alias].connection)

    def fall_silent(self) -> None:
        """Drop the locks and stop listening, before `close`: a pool hands the session on."""
        if self._raw is None or self.is_lost():
            return
        if self._is_idle:
            self._drop_locks()
        self._run_for_signals("UNLISTEN")
        database.forget_notifications(self._raw, self._heard)

    def close(self) -> None:
        """Forget the listening connection, with its locks; another wait makes a new one."""
        if self._raw is not None and self.alias != self.using:
            connections[self.alias].close()
        self._raw = None
        self._is_idle = False

    def _await_position_above(self, horizon: int, end: float) -> None:
        while time.monotonic() < end:
            self._sleep(LINGER_STEP)
            if message_log.last_position(self.using) > horizon:
                return

    def _become_idle(self) -> None:
        """Take the idle locks; the caller's next look is the one that counts."""
        if not self._connect():
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
        self._is_idle = False
        with connections[self.alias].cursor() as cursor:
            run_statement(cursor, "drop_idle_locks", {"keys": self._locked})

    def _connect(self) -> bool:
        """Listen, once per connection; False when a pooler makes that useless."""
        connection = connections[self.alias]
        connection.ensure_connection()
        if connection.connection is self._raw:
            return True
        with connection.cursor() as cursor:
            if self.listen is True and self._is_pooled(cursor):
                logger.warning(POOLED, self.using, self.poll_interval)
                self.listen = False
                return False
        self._run_for_signals("LISTEN")
        self._raw = connection.connection
        self._heard = database.heard_notifications(self._raw)
        return True

    def _run_for_signals(self, command: str) -> None:
        connection = connections[self.alias]
        with connection.cursor() as cursor:
            run_statement(cursor, "signal_names", {"channels": self.channels})
            for (name,) in cursor.fetchall():
                cursor.execute(f"{command} {connection.ops.quote_name(name)}")

    def _is_pooled(self, cursor: Any) -> bool:
        run_statement(cursor, "see_backend")
        return bool(
            cursor.fetchone()[0] != database.backend_pid(connections[self.alias].connection)
        )

    def _wait_for_publisher(self) -> None:
        self._sleep(min(LONGEST_SHORT_WAIT, SHORT_WAIT * 2**self._short_waits))
        self._short_waits = min(self._short_waits + 1, 16)

    def _poll(self, horizon: int) -> None:
        if message_log.last_position(self.using) > horizon:
            return self._wait_for_publisher()
        self._sleep(min(self._until_due(), FIRST_POLL * 2**self._short_waits))
        self._short_waits = min(self._short_waits + 1, 16)

    def _until_due(self) -> float:
        due = cursors.next_retry(self.groups, self.using)
        return self.poll_interval if due is None else min(due, self.poll_interval)

    def _sleep(self, seconds: float) -> None:
        """Wait for a NOTIFY, an interruption or the time, whichever is first."""
        if self._raw is None:
            return self.pause(seconds)
        if not database.take_notifications(self._raw, self._heard):
            select.select([database.fileno(self._raw), self._pipe[0]], [], [], seconds)
            database.take_notifications(self._raw, self._heard)


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
