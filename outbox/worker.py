"""The worker: one process that claims and dispatches.

`run_once` is the page to read first: its calls are the steps, each in the module that owns it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from django.db import Error, connections, transaction

from . import database, message_log, observers, outages, positions
from . import groups as group_registry
from .conf import log_alias, settings
from .consuming import cursors, leased, outcomes, shared, transactional
from .consuming.batch import Batch
from .consuming.batch_limits import BatchLimits
from .consuming.claims import Claims
from .consuming.generations import Generations
from .consuming.notifications import Wakeups
from .consuming.shared import SharedBatch
from .exceptions import StaleClaim
from .groups import ConsumerGroup
from .outages import Meaning, Outage
from .retention import maintenance


class Delivery(Protocol):
    """What the module of a mode of delivery does with a batch."""

    def begin(self, batch: Batch) -> None:
        """Do what belongs into the transaction of the claim."""

    def finish(self, batch: Batch) -> int:
        """Do what comes after its commit; return how many messages the range moved past."""

    def recover(self, batch: Batch, error: Error | StaleClaim) -> int:
        """Clean up after the whole transaction failed; return as `finish`."""


DELIVERIES: dict[str, Delivery] = {
    "exactly_once": transactional,
    "at_least_once": leased,
    "shared": shared,
}


class Worker:
    """Handles the messages of some groups, a batch at a time, in one database.

    `groups`: the groups or their names. `using`: the database alias; by
    default the one the router writes messages to. `batch_size`: most
    messages in a batch; the setting `BATCH_SIZE` when left out. `wakeups`: how to wait;
    by default as the settings say. `count_own_floor`: see `message_log.horizon`.
    `each_turn`: called at every turn of the loop, also while there is nothing to do.
    """

    def __init__(
        self,
        groups: Sequence[ConsumerGroup | str],
        *,
        using: str | None = None,
        batch_size: int | None = None,
        wakeups: Wakeups | None = None,
        count_own_floor: bool = True,
        each_turn: Callable[[], object] | None = None,
    ) -> None:
        self.groups = [group_registry.get(each) for each in groups]
        self.using = using = log_alias(using)
        self.limits = BatchLimits(batch_size or settings().batch_size, settings().batch_bytes)
        self.wakeups = wakeups or Wakeups(self.groups, using)
        self.each_turn = each_turn or (lambda: None)
        self._maintenance = maintenance.InPassing(using)
        self.handled = 0
        """Messages moved past since this worker began."""
        self.claims = Claims(using, count_own_floor=count_own_floor)
        self._last_position: int | None = None
        """During a drain, the last position that it handles."""
        self._is_registered = self._has_worked = False
        self._raw: Any = None
        self._is_recoded: Callable[[], bool] = lambda: False
        self._round_robin = list(self.groups)
        self._generations = Generations()
        self._stopping = False
        self._by_name = {group.name: group for group in self.groups}
        self._unfinished: Batch | None = None

    # waiting -> claimed -> handled -> written -> committed
    #                         |-> failed: its range waits, or the message is parked or skipped
    def run_once(self) -> int | None:
        """Handle one batch of one range and return how many messages it moved past.

        None when nothing is pending; 0 when the next message failed and its range backs off.
        """
        connection = connections[self.using]
        if self._is_recoded() and not connection.in_atomic_block:
            outages.leave_recoded(self.using)
        connection.ensure_connection()
        if connection.connection is not self._raw:
            self._use_session(connection.connection)
        if not self._is_registered:
            self.register()
        database.close_broken_connections(keep={self.using, self.wakeups.alias})
        if self._unfinished is not None:
            return self._finish(self._unfinished)
        self.claims.advance_idle()
        return self._deliver()

    def _deliver(self) -> int | None:
        """Claim a range and handle its next messages; None when nothing is pending."""
        while True:
            batch, has_begun = None, False
            try:
                with transaction.atomic(using=self.using):
                    batch = self._claim()
                    if batch is None:
                        pass
                    elif batch.rows:
                        has_begun = True  # it may turn out that all its messages are parked
                        DELIVERIES[batch.delivery].begin(batch)
                    else:  # a gap: its move is committed before anything that may fail
                        outcomes.write(batch.outcome(), self.using)
            except (Error, StaleClaim) as error:
                if batch is not None:
                    delivery = DELIVERIES[batch.delivery]
                    return self._count(batch, delivery.recover(batch, error))
                if database.is_conflict(error):
                    return 0
                raise
            if batch is not None and has_begun:
                return self._finish(batch)
            if batch is None and not self.claims.has_more:
                return None
            if self.claims.log_was_emptied:
                self._start_over()

    def _claim(self) -> Batch | None:
        """Claim a range with its next messages; without any when it has a gap before it."""
        limits = self.limits.messages, self.limits.bytes
        if window := self.claims.claim_window(self._round_robin, *limits):
            claims, rows = [*window.claims.values()], window.rows
        elif found := self.claims.claim(self._round_robin, *limits, self._last_position):
            claims, rows = [found[0]], found[1]
        else:
            return None
        for claim in claims:
            self._generations.compare(claim)
        claim, group = claims[0], self._by_name[claims[0].group]
        self._round_robin.remove(group)
        self._round_robin.append(group)
        if window:
            return SharedBatch(group, claim, rows, claim.limit, self.using, window=window)
        return Batch(group, claim, rows, claim.limit, self.using, lambda: self._stopping)

    def _finish(self, batch: Batch) -> int:
        """Do what a batch needs after its transaction; again, if the database goes away in it."""
        self._unfinished = batch
        moved = DELIVERIES[batch.delivery].finish(batch)
        self._unfinished = None
        return self._count(batch, moved)

    def _count(self, batch: Batch, moved: int) -> int:
        self.handled += moved
        self._has_worked = True
        if observers.after_batch:
            facts = (batch.group.name, batch.claim.channel, moved)
            observers.notify(observers.after_batch, *facts, time.monotonic() - batch.began_at)
        if moved == len(batch.rows) and batch.end_position == batch.claim.limit:
            self.claims.note_done(batch.claim)
        else:
            self.claims.drop_queue()
        return moved

    @property
    def is_ready(self) -> bool:
        """Whether it has a session in which it can claim, and no stop was requested."""
        return self._is_registered and not self._stopping

    def register(self) -> None:
        """Create the cursors that the groups lack; raises ImpossiblePosition."""
        cursors.register(self.groups, self.using)
        positions.refuse_faults(self.using)
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
            self.claims.drop_queue()
        return self.handled - before

    def run(
        self,
        *,
        max_messages: int | None = None,
        max_outage: float | None = None,
        until_idle: bool = False,
    ) -> None:
        """Handle messages until `stop()`, or until `max_messages` were moved past.

        `until_idle`: only what is in the log now; ends when none of it is pending. Reconnects when
        the database goes away; gives up after `max_outage` seconds without it and raises
        ConnectionLost; None: never.
        """
        outage = Outage(max_outage)
        self._last_position = None
        while self._may_go_on(max_messages):
            try:
                self._set_up_session(outage)
                if until_idle and self._last_position is None:
                    self._last_position = message_log.last_position(self.using)
                self._maintenance.turn()
                moved = self.run_once()
                outage.end()
                if moved is None and until_idle:
                    break
                if moved is None:
                    self.wakeups.wait(self.claims.state, self.claims.idle)
                    self._is_registered &= not self.wakeups.misses_cursors
                else:
                    self.limits.note_success()
                    self.wakeups.reset()
            except Exception as error:
                if (delay := self._recover(error, outage)) is None:
                    raise
                self.wakeups.pause(delay)
        with contextlib.suppress(*outages.errors(self.using)):
            self.wakeups.unlisten()
        self.wakeups.close()
        connections[self.using].close()

    def stop(self) -> None:
        """Ask the worker to finish its batch and return; safe in a signal handler."""
        self._stopping = True
        self.wakeups.interrupt()

    def _may_go_on(self, max_messages: int | None) -> bool:
        self.each_turn()
        return not self._stopping and (max_messages is None or self.handled < max_messages)

    def _set_up_session(self, outage: Outage) -> None:
        """Prepare a session that is new, also when a handler closed the one before."""
        raw = connections[self.using].connection
        if self._is_recoded():
            outages.leave_recoded(self.using)
        elif raw is not None and raw is self._raw:
            return
        self._use_session(database.set_up(self.using, cursors.session_name(self._by_name)))
        self.register()
        outage.note_answer()

    def _recover(self, error: Exception, outage: Outage) -> float | None:
        """Discard the session after an error; return the seconds to wait before the next one.

        None when a new session cannot help.
        """
        meaning = outages.meaning(error, self.using, self._raw, has_worked=self._has_worked)
        if meaning is Meaning.OTHER:
            return None
        if meaning is Meaning.OUTAGE:
            delay = outage.next_delay(error)
        elif meaning is Meaning.CHANGED:
            delay = outages.note_changed(error)
        else:
            if meaning is Meaning.CANCELLED:
                self.limits.halve()
            limits = self.limits
            delay = outages.note_cancelled(error, limits.tries, limits.messages, limits.bytes)
        self._forget_session()
        outages.discard(self.using)
        return delay

    def _start_over(self) -> None:
        """Begin again in a log that was emptied, or restored, with the cursors."""
        self.claims.forget()
        cursors.register(self.groups, self.using, log_was_emptied=True)
        positions.refuse_faults(self.using)

    def _use_session(self, raw: Any) -> None:
        self._forget_session()
        self._raw, self._is_recoded = raw, database.encoding_watch(raw)

    def _forget_session(self) -> None:
        """Forget what was learnt from a session."""
        self._raw, self._is_recoded = None, lambda: False
        self._is_registered = self._has_worked = False
        self.claims.forget()
        self.wakeups.close()
