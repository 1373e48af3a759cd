"""The worker: one process that claims and dispatches.

`run_once` is the page to read first: its calls are the steps, each in the module that owns it.
"""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from django.db import DatabaseError, InterfaceError, OperationalError, connections, transaction

from . import database, message_log
from . import groups as group_registry
from .conf import settings
from .consuming import cursors, dispatcher, leased
from .consuming.batch import Batch
from .consuming.cursors import Claim
from .consuming.idle_ranges import IdleRanges
from .consuming.notifications import Wakeups
from .exceptions import ConnectionLost
from .groups import ConsumerGroup
from .retention import maintenance
from .sql import run_statement

logger = logging.getLogger("outbox.worker")

LONGEST_RECONNECT = 10.0
"""Seconds between two tries to reach a database that is down, at most."""


class Worker:
    """Handles the messages of some groups, a batch at a time, in one database.

    `groups`: the groups or their names. `using`: the database alias. `batch_size`: most
    messages in a batch; the setting `BATCH_SIZE` when left out. `wakeups`: how to wait;
    by default as the settings say. `count_own_floor`: see `message_log.horizon`.
    `each_turn`: called at every turn of the loop, also while there is nothing to do.
    """

    def __init__(
        self,
        groups: Sequence[ConsumerGroup | str],
        *,
        using: str = "default",
        batch_size: int | None = None,
        wakeups: Wakeups | None = None,
        count_own_floor: bool = True,
        each_turn: Callable[[], object] | None = None,
    ) -> None:
        self.groups = [group_registry.get(g) if isinstance(g, str) else g for g in groups]
        self.using = using
        self.batch_size = batch_size or settings().batch_size
        self.wakeups = wakeups or Wakeups(self.groups, using)
        self.count_own_floor = count_own_floor
        self.each_turn = each_turn or (lambda: None)
        self._maintenance = maintenance.InPassing(using)
        self.handled = 0
        """Messages moved past since this worker began."""
        self.horizon = 0
        self._horizon_is_used_up = True
        self._last_position: int | None = None
        """During a drain, the last position that it handles."""
        self._is_registered = False
        self._raw: Any = None
        self._settled_at = 0
        self._idle = IdleRanges()
        self._turns = list(self.groups)
        self._stopping = False
        self._by_name = {group.name: group for group in self.groups}
        self._suspects: dict[int, int] = {}
        """Cursor id -> position up to which a batch failed at its commit."""

    # waiting -> claimed -> dispatched -> committed, what was given up parked
    #                                 |-> failed: its range backs off in the database
    def run_once(self) -> int | None:
        """Handle one batch of one range and return how many messages it moved past.

        None when nothing is pending; 0 when the next message failed and its range backs off.
        """
        if not self._is_registered:
            self.register()
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
        self._is_registered = True

    def drain(self, max_messages: int | None = None) -> int:
        """Handle what was published before the call; return how many messages were moved past.

        Stops early after `max_messages` or `stop()`. A message that failed and backs off is
        not waited for.
        """
        before = self.handled
        self._last_position = message_log.last_position(self.using)
        try:
            while self._may_go_on(max_messages) and self.run_once() is not None:
                pass
        finally:
            self._last_position = None
            self._horizon_is_used_up = True
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
                self._maintenance.turn()
                if self.run_once() is None:
                    self.wakeups.wait(self.horizon)
                else:
                    self.wakeups.stay_awake()
                outage.end()
            except (ConnectionLost, OperationalError, InterfaceError) as error:
                if not self._is_lost(error):
                    raise
                self._disconnect()
                is_known = False
                self.wakeups.pause(outage.next_delay(error))
        with contextlib.suppress(DatabaseError, InterfaceError):
            self.wakeups.fall_silent()
        self._disconnect()

    def stop(self) -> None:
        """Ask the worker to finish the batch in hand and return; safe in a signal handler."""
        self._stopping = True
        self.wakeups.interrupt()

    def _may_go_on(self, max_messages: int | None) -> bool:
        self.each_turn()
        return not self._stopping and (max_messages is None or self.handled < max_messages)

    def _introduce(self) -> None:
        with connections[self.using].cursor() as cursor:
            run_statement(cursor, "set_application_name", {"name": self._application_name()})
        with contextlib.suppress(DatabaseError), connections[self.using].cursor() as cursor:
            run_statement(cursor, "notice_dead_clients")
        self.register()

    def _application_name(self) -> str:
        """Return which groups and who, in the 63 bytes that the server keeps."""
        host, _, pid = cursors.holder().rpartition(":")
        who = f" {host[:24]}:{pid}"
        groups = "outbox:" + ",".join(self._by_name)
        room = 63 - len(who.encode())
        if len(groups.encode()) > room:
            groups = groups.encode()[: room - 3].decode(errors="ignore") + "..."
        return groups + who

    def _read_horizon(self) -> None:
        if self._raw is None:
            connections[self.using].ensure_connection()
            self._raw = connections[self.using].connection
        self.horizon = message_log.horizon(self.using, count_own_floor=self.count_own_floor)
        if self._last_position is not None:
            self.horizon = min(self.horizon, self._last_position)
        self._idle.look(self.horizon, self.using)
        if self._idle and self.horizon - self._settled_at > cursors.IDLE_GAP:
            cursors.settle(self._idle, self.using)
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
                moved = 0 if batch.is_leased else self._handle(batch)
        except dispatcher.SingleFailed as failed:
            with transaction.atomic(using=self.using):
                return dispatcher.conclude_failed(failed)
        except Exception as error:
            is_database_error = isinstance(error, DatabaseError)
            if is_database_error and self._is_lost(error):
                raise
            if committed:
                logger.exception("a function registered with on_commit() raised; the batch is kept")
            elif database.is_conflict(error):
                return 0
            elif is_database_error and batch is not None and not batch.is_leased:
                return self._suspect(batch, error)
            else:
                raise
        if batch is not None and batch.is_leased:
            moved = leased.deliver(batch, lambda: not self._stopping)
        return moved

    def _claim(self) -> Batch | None:
        """Claim a range with its next messages; move ranges that turn out to have none."""
        has_moved = False
        while found := cursors.claim(
            self._turns, self.horizon, self.using, self.batch_size, self._idle
        ):
            batch = self._batch(*found)
            if batch.rows:
                batch.needs_savepoint = has_moved
                if batch.is_leased:
                    batch.claim = cursors.lease(batch.claim, batch.group.lease, self.using)
                return batch
            dispatcher.conclude(batch)
            has_moved = True
        return None

    def _batch(self, claim: Claim, rows: list[message_log.Row]) -> Batch:
        group = self._by_name[claim.group]
        self._turns.sort(key=lambda each: each is group)
        until = rows[-1][0] if len(rows) == self.batch_size else claim.until
        batch = Batch(group, claim, rows, until, self.using)
        batch.check_constraints = claim.position < self._suspects.get(claim.id, 0)
        return batch

    def _handle(self, batch: Batch) -> int:
        dispatcher.dispatch(batch)
        return dispatcher.conclude(batch).count

    def _suspect(self, batch: Batch, error: Exception) -> int:
        """After a failed commit look closer at its messages; if that was done, back off."""
        if not batch.check_constraints:
            self._suspects[batch.claim.id] = batch.until
            return 0
        with transaction.atomic(using=self.using):
            return dispatcher.back_off(batch, error).count

    def _is_lost(self, error: Exception) -> bool:
        """Tell a lost connection from another error; Django may have made a new one already."""
        raw = connections[self.using].connection
        is_other = raw is not self._raw or database.is_lost(raw)
        return isinstance(error, ConnectionLost) or is_other or self.wakeups.is_lost()

    def _disconnect(self) -> None:
        self._horizon_is_used_up = True
        self._raw = None
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
        longest = min(LONGEST_RECONNECT, 0.1 * 2.0 ** min(self.tries, 10))
        return random.uniform(0.5, 1) * longest

    def end(self) -> None:
        """Note that the database answers."""
        if self.began is not None:
            logger.warning("the database is back after %.1f s", time.monotonic() - self.began)
            self.began, self.tries = None, 0
