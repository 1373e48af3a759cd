"""Hand the messages of a claim to the group's handlers, up to the first one that fails.

A batch is optimistic: all of it runs in one savepoint. When a message fails, the savepoint is
rolled back, the messages before it are run again and kept, and then it is tried alone. All of
this happens under the cursor's lock, so no other worker ever sees a batch half done.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from django.db import DatabaseError, connections, transaction

from . import driver, events
from .conf import settings
from .cursors import Advance, Claim
from .exceptions import BrokenTransaction, ConnectionLost, FailedAt
from .groups import ConsumerGroup, Route
from .message_log import Row


ERROR_LENGTH = 2000
"""Characters of an error that are kept on the cursor."""


class HandlerFailed(Exception):
    """The handling of rows[start:stop] failed with `cause`."""

    def __init__(self, start: int, stop: int, cause: Exception) -> None:
        super().__init__(start, stop, cause)
        self.start = start
        self.stop = stop
        self.cause = cause


@dataclasses.dataclass(slots=True)
class Batch:
    """The rows of one claim and what became of them."""

    group: ConsumerGroup
    claim: Claim
    rows: Sequence[Row]
    using: str
    handled: int = 0
    """How many rows are done, from the first one on; skipped ones included."""
    skipped: int = 0
    """How many of these have no handler."""
    failure: Exception | None = None
    """Why the row after them failed; everything it did is rolled back."""
    check_constraints: bool = False
    """Check deferred constraints before a part of the batch is kept, not at its commit."""

    def message(self, index: int) -> events.Message:
        """Return rows[index] as its handler sees it."""
        position, key, type_name, payload, headers, created_at = self.rows[index]
        claim = self.claim
        return events.Message(
            position,
            claim.channel,
            key,
            type_name,
            claim.attempts + 1 if index == 0 else 1,
            position <= claim.seen_position,
            claim.group,
            payload,
            headers,
            created_at,
        )


def dispatch(batch: Batch) -> None:
    """Handle the rows in order until one fails, the time budget ends, or all are done.

    Runs inside the claim's transaction. Raises ConnectionLost when the database went away.
    """
    total = len(batch.rows)
    stop, suspect_end = total, 0
    deadline = time.monotonic() + settings().batch_seconds
    while batch.handled < total and batch.failure is None:
        try:
            with transaction.atomic(using=batch.using):
                handled, skipped = _run(batch, stop, deadline)
                if batch.check_constraints:
                    _check_constraints(batch, batch.handled + handled)
        except HandlerFailed as failed:
            _raise_if_lost(batch.using, failed.cause)
            if failed.start == batch.handled and failed.stop == failed.start + 1:
                batch.failure = failed.cause
                return
            suspect_end = failed.stop
            stop = failed.start if failed.start > batch.handled else _half(batch, suspect_end)
            deadline = time.monotonic() + settings().batch_seconds
            continue
        batch.handled += handled
        batch.skipped += skipped
        if time.monotonic() >= deadline:
            return
        stop = _half(batch, suspect_end) if suspect_end > batch.handled else total


def _half(batch: Batch, suspect_end: int) -> int:
    return batch.handled + max(1, (suspect_end - batch.handled) // 2)


def _check_constraints(batch: Batch, stop: int) -> None:
    try:
        connections[batch.using].check_constraints()
    except DatabaseError as error:
        raise HandlerFailed(batch.handled, stop, error) from error


def _raise_if_lost(using: str, cause: Exception) -> None:
    if driver.is_lost(connections[using].connection):
        raise ConnectionLost(str(cause)) from cause


def _run(batch: Batch, stop: int, deadline: float) -> tuple[int, int]:
    """Handle rows[batch.handled:stop]; return how many are done, and how many were skipped."""
    routes = batch.group.routes(batch.claim.channel)
    check = _transaction_check(batch.using)
    savepoints = batch.group.savepoint_per_message
    run = _NeighbourRun(batch, check)
    skipped = 0
    for index in range(batch.handled, stop):
        route = routes.get(batch.rows[index][2])
        if route is None:
            skipped += 1
            continue
        run.end_unless(route)
        message = batch.message(index)
        try:
            event = decoded(route, message)
            if route.is_batch:
                run.add(route, event, message, index)
                continue
            route.handler(event, message)
            check()
        except Exception as error:
            raise HandlerFailed(index, index + 1, error) from error
        if time.monotonic() >= deadline:
            return index + 1 - batch.handled, skipped
    run.end()
    return stop - batch.handled, skipped


def outcome(batch: Batch, horizon: int, was_full: bool) -> Advance:
    """Return the change of the cursor: how far it moves, and when it goes on.

    `was_full`: there may be more rows below the horizon; otherwise the range moves up to it.
    """
    claim = batch.claim
    if batch.handled == len(batch.rows) and not was_full:
        position = horizon
    else:
        position = batch.rows[batch.handled - 1][0] if batch.handled else claim.position
    change = Advance(position, batch.handled - batch.skipped, batch.skipped)
    if batch.failure is not None:
        change.attempts = 1 if batch.handled else claim.attempts + 1
        change.retry_delay = batch.group.retry.delay(change.attempts)
        change.last_error = describe(batch)
    return change


def describe(batch: Batch) -> str:
    """Return which message failed and why, for people; bounded."""
    failed = batch.message(batch.handled)
    error = batch.failure
    text = f"{failed.type} at {failed.position}: {type(error).__name__}: {error}"
    return text.replace("\0", "\\0")[:ERROR_LENGTH]


def decoded(route: Route, message: events.Message) -> Any:
    """Return what the route's handler takes as the event of a message."""
    if route.event_type is None:
        return msgspec.json.decode(message.raw_payload)
    return events.decode(message, route.event_type)


class _NeighbourRun:
    """Neighbouring messages for one batch handler, handed over together."""

    def __init__(self, batch: Batch, check: Callable[[], None]) -> None:
        self.batch = batch
        self.check = check
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
        if self.route is not None and self.route is not route:
            self.end()

    def end(self) -> None:
        if self.route is None:
            return
        try:
            self.route.handler(self.events, self.messages)
            self.check()
        except FailedAt as error:
            index = self._index_of(error.message)
            raise HandlerFailed(index, index + 1, _as_exception(error)) from error
        except Exception as error:
            raise HandlerFailed(self.indexes[0], self.indexes[-1] + 1, error) from error
        self.route = None
        self.events, self.messages, self.indexes = [], [], []

    def _index_of(self, message: events.Message) -> int:
        for index, candidate in zip(self.indexes, self.messages, strict=True):
            if candidate.position == message.position:
                return index
        return self.indexes[0]


def _as_exception(error: FailedAt) -> Exception:
    return error.cause if isinstance(error.cause, Exception) else error


def _transaction_check(using: str) -> Callable[[], None]:
    """Return a function that raises when a handler left the transaction broken."""
    connection = connections[using]
    status = driver.status_reader(connection.connection)

    def check() -> None:
        if status() == driver.IN_ERROR or connection.needs_rollback:
            raise BrokenTransaction()

    return check
