"""The worker: one process that claims and dispatches.

`run_once` is the page to read first: its calls are the steps, each in the module that owns it.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence

from django.db import DatabaseError, InterfaceError, OperationalError, connections, transaction

from . import cursors, dispatcher, driver, message_log
from . import groups as group_registry
from .conf import settings
from .dispatcher import Batch
from .exceptions import ConnectionLost
from .groups import ConsumerGroup
from .queries import statement
from .wakeups import Wakeups

logger = logging.getLogger("outbox.worker")

LONGEST_RECONNECT = 10.0
"""Seconds between two tries to reach a database that is down, at most."""


class Worker:
    """Handles the messages of some groups, a batch at a time, in one database.

    `groups`: the groups or their names. `using`: the database alias. `batch_size`: most
    messages in a batch; the setting `BATCH_SIZE` when left out. `wakeups`: how to wait;
    by default as the settings say. `count_own_floor`: see `message_log.horizon`.
    """

    def __init__(
        self,
        groups: Sequence[ConsumerGroup | str],
        *,
        using: str = "default",
        batch_size: int | None = None,
        wakeups: Wakeups | None = None,
        count_own_floor: bool = True,
    ) -> None:
        self.groups = [group_registry.get(g) if isinstance(g, str) else g for g in groups]
        self.using = using
        self.batch_size = batch_size or settings().batch_size
        self.wakeups = wakeups or Wakeups(self.groups, using)
        self.count_own_floor = count_own_floor
        self.handled = 0
        """Messages moved past since this worker began."""
        self.horizon = 0
        self._horizon_is_used_up = True
        self._settled_at = 0
        self._stopping = False
        self._by_name = {group.name: group for group in self.groups}
        self._suspects: dict[int, int] = {}
        """Cursor id -> position up to which a batch failed at its commit."""

    # waiting -> claimed -> dispatched -> committed
    #                   |-> failed: rolled back, its range backs off in the database
    def run_once(self) -> int | None:
        """Handle one batch of one range and return how many messages it moved past.

        None when nothing is pending; 0 when the next message failed and its range backs off.
        """
        moved = None if self._horizon_is_used_up else self._serve()
        if moved is None:
            self._read_horizon()
            moved = self._serve()
        self._horizon_is_used_up = moved is None
        self.handled += moved or 0
        return moved

    def register(self) -> None:
        """Create the cursors that the groups lack."""
        cursors.register(self.groups, self.using)

    def drain(self, max_messages: int | None = None) -> int:
        """Handle what is pending and return how many messages were moved past.

        Stops early after `max_messages` or `stop()`. A message that failed and backs off is
        not waited for.
        """
        self.register()
        before = self.handled
        while self._may_go_on(max_messages) and self.run_once() is not None:
            pass
        return self.handled - before

    def run(self, *, max_messages: int | None = None, max_outage: float | None = None) -> None:
        """Handle messages until `stop()`, or until `max_messages` were moved past.

        Reconnects when the database goes away; gives up after `max_outage` seconds without
        it and raises ConnectionLost; None: never.
        """
        outage = Outage(max_outage)
        is_known = False
        while self._may_go_on(max_messages):
            try:
                if not is_known:
                    self._introduce()
                    is_known = True
                if self.run_once() is None:
                    self.wakeups.wait(self.horizon)
                else:
                    self.wakeups.stay_awake()
                outage.end()
            except (ConnectionLost, OperationalError, InterfaceError) as error:
                if not self._is_lost():
                    raise
                self._disconnect()
                is_known = False
                self.wakeups.pause(outage.next_delay(error))
        self._disconnect()

    def stop(self) -> None:
        """Ask the worker to finish the batch in hand and return; safe in a signal handler."""
        self._stopping = True
        self.wakeups.interrupt()

    def _may_go_on(self, max_messages: int | None) -> bool:
        return not self._stopping and (max_messages is None or self.handled < max_messages)

    def _introduce(self) -> None:
        with connections[self.using].cursor() as cursor:
            name = "outbox:" + ",".join(self._by_name)
            cursor.execute(statement("set_application_name"), {"name": name[:63]})
        self.register()

    def _read_horizon(self) -> None:
        self.horizon = message_log.horizon(self.using, count_own_floor=self.count_own_floor)
        if self.horizon - self._settled_at > cursors.IDLE_GAP:
            cursors.settle(self.groups, self.horizon, self.using)
            self._settled_at = self.horizon

    def _serve(self) -> int | None:
        committed: list[bool] = []
        batch: Batch | None = None
        try:
            with transaction.atomic(using=self.using):
                transaction.on_commit(lambda: committed.append(True), using=self.using)
                batch = self._claim()
                if batch is None:
                    return None
                moved = self._handle(batch)
        except DatabaseError as error:
            if batch is None or self._is_lost():
                raise
            return 0 if committed else self._suspect(batch, error)
        except Exception:
            if not committed:
                raise
            logger.exception("a function registered with on_commit() raised; the batch is kept")
        return moved

    def _claim(self) -> Batch | None:
        claim = cursors.claim(self.groups, self.horizon, self.using)
        if claim is None:
            return None
        rows = message_log.read(
            self.using,
            claim.channel,
            after=claim.position,
            until=self.horizon,
            slots=claim.slots,
            most=self.batch_size,
        )
        batch = Batch(self._by_name[claim.group], claim, rows, self.using)
        batch.check_constraints = claim.position < self._suspects.get(claim.id, 0)
        return batch

    def _handle(self, batch: Batch) -> int:
        dispatcher.dispatch(batch)
        return self._advance(batch)

    def _advance(self, batch: Batch) -> int:
        was_full = len(batch.rows) == self.batch_size
        change = dispatcher.outcome(batch, self.horizon, was_full)
        cursors.advance(batch.claim, change, self.using)
        if batch.failure is not None:
            _log_failure(batch, change)
        return change.count

    def _suspect(self, batch: Batch, error: DatabaseError) -> int:
        """After a failed commit look closer at its messages; if that was done, back off."""
        if not batch.check_constraints:
            self._suspects[batch.claim.id] = batch.rows[-1][0]
            return 0
        batch.handled, batch.skipped, batch.failure = 0, 0, error
        with transaction.atomic(using=self.using):
            return self._advance(batch)

    def _is_lost(self) -> bool:
        return driver.is_lost(connections[self.using].connection) or self.wakeups.is_lost()

    def _disconnect(self) -> None:
        self.wakeups.close()
        connections[self.using].close()


class Outage:
    """How long the database has been away, and when to try again.

    `limit`: seconds after which ConnectionLost is raised; None for no limit.
    """

    def __init__(self, limit: float | None) -> None:
        self.limit = limit
        self.began: float | None = None
        self.tries = 0

    def next_delay(self, error: Exception) -> float:
        """Return the seconds to wait before the next try; raises ConnectionLost at the limit."""
        now = time.monotonic()
        if self.began is None:
            self.began = now
            logger.warning("the database went away: %s", str(error).strip())
        if self.limit is not None and now - self.began >= self.limit:
            raise ConnectionLost(f"the database was away for {now - self.began:.0f} s") from error
        self.tries += 1
        return random.uniform(0.5, 1) * min(LONGEST_RECONNECT, 0.1 * 2 ** min(self.tries, 10))

    def end(self) -> None:
        """Note that the database answers."""
        if self.began is not None:
            logger.warning(
                "the database is back after %.1f s", time.monotonic() - self.began
            )
            self.began, self.tries = None, 0


def _log_failure(batch: Batch, change: cursors.Advance) -> None:
    message = batch.message(batch.handled)
    logger.warning(
        "%s failed at %s (attempt %d, next try in %.1f s): %s",
        message.group,
        message.position,
        change.attempts,
        change.retry_delay or 0,
        change.last_error,
        exc_info=batch.failure,
        extra={
            "group": message.group,
            "channel": message.channel,
            "position": message.position,
            "attempt": change.attempts,
        },
    )
