"""Hand the messages of a claim to the group's handlers, and settle what became of them.

A batch is optimistic: all of it runs in one savepoint. When a message fails, the savepoint is
rolled back, the messages before it are run again and kept, and then it is tried alone. If its
group gives up on it, it is parked or skipped and the batch goes on behind it; else the batch ends
and the range backs off. Of a leased range the same happens without savepoints, and a single
message has none: the claim is rolled back with it.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

from django.db import DatabaseError, connections, transaction

from .. import database, events
from ..conf import settings
from ..exceptions import ConnectionLost, FailedAt
from ..groups import Route
from . import cursors, failures, in_flight, parked_messages
from .batch import Batch
from .cursors import Advance

logger = logging.getLogger("outbox.dispatcher")


class HandlerFailed(Exception):
    """The handling of rows[start:stop] failed with `cause`."""

    def __init__(self, start: int, stop: int, cause: Exception) -> None:
        super().__init__(start, stop, cause)
        self.start = start
        self.stop = stop
        self.cause = cause


class SingleFailed(Exception):
    """The one message of `batch` failed with `cause`: roll back, then call `conclude_failed`."""

    def __init__(self, batch: Batch, cause: Exception) -> None:
        super().__init__(batch, cause)
        self.batch = batch
        self.cause = cause


def dispatch(batch: Batch) -> None:
    """Handle the rows in order until one is to be tried again, the time is up, or all are done.

    Runs inside the claim's transaction, or outside one when the range is leased. Raises
    ConnectionLost when the database went away, and SingleFailed.
    """
    batch.prepare()
    budget = settings().batch_seconds
    end = deadline = time.monotonic() + budget
    suspects = (0, 0)
    while batch.is_open:
        try:
            with _savepoint(batch):
                handled, skipped = _run(batch, _next_stop(batch, suspects), deadline)
                if batch.check_constraints:
                    _check_constraints(batch, batch.handled + handled)
        except HandlerFailed as failed:
            _raise_if_lost(batch, failed.cause)
            if batch.is_single:
                raise SingleFailed(batch, failed.cause) from failed.cause
            if failed.stop > batch.handled + 1:
                suspects, deadline = (failed.start, failed.stop), time.monotonic() + budget
                continue
            batch.fail(failed.cause)
            suspects, deadline = (0, 0), end
        else:
            batch.handled += handled
            batch.skipped += skipped
        if time.monotonic() >= deadline:
            return


def conclude(batch: Batch, lease: float | None = None) -> Advance:
    """Write what became of a batch: its parked messages and the advance of its cursor.

    Runs in the transaction of the batch; of a leased range, in one of its own. `lease`: as for
    `cursors.advance`. Raises StaleClaim.
    """
    change = batch.outcome()
    for failure in batch.failures:
        if failure.verdict == "park":
            parked_messages.park(failure, batch.using)
        failures.announce(failure, batch.using)
    behind = [position for position in batch.behind if position <= change.position]
    parked_messages.park_behind(batch.claim, behind, batch.using)
    change.parked += len(behind)
    cursors.advance(batch.claim, change, batch.using, lease)
    return change


def conclude_failed(failed: SingleFailed) -> int:
    """Write what becomes of a single message that failed, after the roll-back of its claim.

    Runs in a transaction of its own. Does nothing when another worker claimed the range since.
    Returns how many messages the range moved past. Raises StaleClaim.
    """
    batch = failed.batch
    claim, _ = cursors.lock(batch.claim.id, batch.using) or (None, None)
    if claim is None or not claim.continues(batch.claim):
        return 0
    batch.fail(failed.cause)
    return conclude(batch).count


def back_off(batch: Batch, error: Exception) -> Advance:
    """Let the range wait after an error that no message can be blamed for.

    Runs in a transaction of its own. Raises StaleClaim.
    """
    claim = batch.claim
    attempts = claim.attempts_at(claim.position) + 1
    change = Advance(
        claim.position,
        attempts=attempts,
        failed_position=claim.position,
        retry_delay=batch.group.retry.delay(attempts),
        last_error=failures.error_line(error),
    )
    cursors.advance(claim, change, batch.using)
    logger.error(
        "%s could not commit its batch after %s in %s (next try in %.1f s): %s",
        claim.group,
        claim.position,
        claim.channel,
        change.retry_delay,
        change.last_error,
        extra={"group": claim.group, "channel": claim.channel, "position": claim.position},
    )
    return change


def _next_stop(batch: Batch, suspects: tuple[int, int]) -> int:
    """Return where the next savepoint ends: before the suspects, amid them, or with the batch."""
    handled = batch.handled
    if batch.group.savepoint_per_message:
        return handled + 1
    if suspects[1] <= handled:
        return len(batch.rows)
    return suspects[0] if suspects[0] > handled else handled + max(1, (suspects[1] - handled) // 2)


def _savepoint(batch: Batch) -> contextlib.AbstractContextManager[Any]:
    if batch.is_leased or batch.is_single:
        return contextlib.nullcontext()
    return transaction.atomic(using=batch.using)


def _check_constraints(batch: Batch, stop: int) -> None:
    try:
        connections[batch.using].check_constraints()
    except DatabaseError as error:
        raise HandlerFailed(batch.handled, stop, error) from error


def _raise_if_lost(batch: Batch, cause: Exception) -> None:
    raw = connections[batch.using].connection
    is_closed_by_handler = raw is None and batch.is_leased
    if database.is_lost(raw) and not is_closed_by_handler:
        raise ConnectionLost(str(cause)) from cause


def _nothing_to_check() -> None:
    """A handler outside a transaction leaves none behind."""


def _run(batch: Batch, stop: int, deadline: float) -> tuple[int, int]:
    """Handle rows[batch.handled:stop]; return how many are done, and how many were skipped."""
    check = _nothing_to_check
    if not batch.is_leased:
        check = database.transaction_check(connections[batch.using])
    note = in_flight.noter(batch.claim.id)
    is_suspect = batch.claim.attempts_at(batch.rows[0][0]) > 0
    run = _NeighbourRun(check, note, 1 if is_suspect else len(batch.rows))
    skipped = 0
    for index, (route, message, event) in enumerate(_decode(batch, stop), batch.handled):
        if route is None:
            skipped += 1
            continue
        run.end_unless(route)
        try:
            if route.is_batch:
                run.add(route, event, message, index)
                continue
            note(message.position, route.timeout)
            route.handler(event, message)
            check()
        except Exception as error:
            note(0, None)
            raise HandlerFailed(index, index + 1, error) from error
        if time.monotonic() >= deadline:
            note(0, None)
            return index + 1 - batch.handled, skipped
    run.end()
    note(0, None)
    return stop - batch.handled, skipped


def _decode(batch: Batch, stop: int) -> list[tuple[Route | None, events.Message, Any]]:
    """Return rows[batch.handled:stop] with their routes and events.

    All before the first handler is called: that is faster than in turns, and a message that
    does not decode costs no call that would have to be undone.
    """
    routes, message_of = batch.group.routes(batch.claim.channel), batch.claim.message
    decoded = []
    for index in range(batch.handled, stop):
        message = message_of(batch.rows[index])
        route = routes.get(message.type)
        try:
            event = None if route is None else route.event_of(message)
        except Exception as error:
            raise HandlerFailed(index, index + 1, error) from error
        decoded.append((route, message, event))
    return decoded


class _NeighbourRun:
    """Neighbouring messages for one batch handler, handed over together, `most` at a time."""

    def __init__(self, check: Callable[[], None], note: in_flight.Note, most: int) -> None:
        self.check = check
        self.note = note
        self.most = most
        self.route: Route | None = None
        self.events: list[Any] = []
        self.messages: list[events.Message] = []
        self.indexes: list[int] = []

    def add(self, route: Route, event: Any, message: events.Message, index: int) -> None:
        self.route = route
        self.events.append(event)
        self.messages.append(message)
        self.indexes.append(index)

    def end_unless(self, route: Route) -> None:
        if self.route and (self.route is not route or len(self.indexes) == self.most):
            self.end()

    def end(self) -> None:
        if self.route is None:
            return
        try:
            self.note(self.messages[0].position, self.route.timeout)
            self.route.handler(self.events, self.messages)
            self.check()
        except Exception as error:
            self.note(0, None)
            start, stop = self._blamed(error)
            raise HandlerFailed(start, stop, failures.cause_of(error)) from error
        self.route = None
        self.events, self.messages, self.indexes = [], [], []

    def _blamed(self, error: Exception) -> tuple[int, int]:
        """Return from where to where the failing message lies."""
        if isinstance(error, FailedAt):
            for index, message in zip(self.indexes, self.messages, strict=True):
                if message.position == error.message.position:
                    return index, index + 1
        return self.indexes[0], self.indexes[-1] + 1
