"""Exactly once: the handlers run in the transaction that holds the cursor row, and commit with it.

    claimed -> handled -> written -> committed
            |-> a message failed: back to the savepoint, those before it again, then it alone
            |-> the transaction or session is gone: the message is charged in another transaction
            |-> the commit failed: the same rows again, each message checked on its own

A batch is optimistic: all of it runs in one savepoint, and a single message in none. After each
call of a handler the transaction is checked without a round trip to the server.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable
from typing import Any

from django.db import Error, connections, transaction

from .. import database
from ..exceptions import (
    BrokenTransaction,
    CursorChanged,
    SessionEnded,
    StaleClaim,
    TransactionEnded,
)
from ..groups import ConsumerGroup
from ..messages import Message
from ..sql import one_row, scalar
from . import crashes, cursors, handlers, in_flight, outcomes
from .batch import Batch
from .cursors import Claim
from .handlers import Done, Failed

logger = logging.getLogger("outbox.consuming")

ROUND_TRIP = 0.00001
"""Seconds; a shorter call has sent nothing to the server."""
LONG_CALL = 0.01
"""Seconds; during a longer call the server may have ended the session."""


def begin(batch: Batch) -> None:
    """Handle the rows and write what became of them, in the transaction of the claim."""
    batch.prepare()
    connection = connections[batch.using]
    while batch.is_open:
        watch = Watch(batch.group, batch.claim, batch.using, is_careful=batch.is_careful)
        with _savepoint(batch):
            result = batch.run(watch.after_call)
            if isinstance(result, Failed):
                watch.undo()
        # No savepoint, its rollback failed, or Django connected anew: undo the transaction.
        if isinstance(result, Failed) and (connection.needs_rollback or watch.is_replaced()):
            batch.undone = result
            return
        batch.apply(result)
        if batch.is_out_of_time:
            break
    outcomes.write(batch.outcome(), batch.using)


def finish(batch: Batch) -> int:
    """After the transaction: return how many messages the range moved past.

    What had to be rolled back with the claim is written now.
    """
    return batch.outcome().count if batch.undone is None else crashes.record_undone(batch)


def recover(batch: Batch, error: Error | StaleClaim) -> int:
    """After the transaction failed as a whole: search for the message that caused it.

    The rows are handled again, each in a savepoint and checked by itself. When no message
    caused it, the range waits. Raises ConnectionLost.
    """
    if database.sqlstate(error) != database.READ_ONLY:  # the claim wrote, so a handler set this
        batch.raise_if_lost(error)
    if database.is_conflict(error):
        return 0
    if database.is_server_state(error):
        outcomes.postpone(batch.claim, error, batch.using)
        return 0
    again = batch.again()
    again.is_careful = True
    try:
        with transaction.atomic(using=batch.using):
            locked = cursors.lock_unchanged(batch.claim, batch.using)
            if locked is None:
                return 0
            again.claim = locked
            begin(again)
    except (Error, StaleClaim) as second:
        again.raise_if_lost(second)
        outcomes.postpone(batch.claim, second, batch.using)
        return 0
    return finish(again)


def handle_alone(group: ConsumerGroup, claim: Claim, message: Message, using: str) -> Done | Failed:
    """Handle one message in a savepoint, under the lock of its cursor row, and check all it did.

    When a savepoint cannot undo the failure, the transaction is marked for a roll-back.
    """
    watch = Watch(group, claim, using, is_careful=True)
    with transaction.atomic(using=using):
        result = handlers.run(group, [message], watch.after_call, in_flight.no_record)
        if isinstance(result, Failed):
            watch.undo()
    return result


def _savepoint(batch: Batch) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if batch.is_single else transaction.atomic(using=batch.using)


class Watch:
    """Looks, after each call of a handler, at what it did to the transaction that it ran in."""

    def __init__(self, group: ConsumerGroup, claim: Claim, using: str, *, is_careful: bool) -> None:
        self.group = group
        self.claim = claim
        self.using = using
        self.connection: Any = connections[using]
        self.raw = self.connection.connection
        self.status = database.status_reader(self.raw)
        self.name = database.parameter_reader(self.raw, "application_name")
        self.mark = self.name()
        """The application_name of the claim's transaction; the server resets it when that ends."""
        self.hooks = len(self.connection.run_on_commit)
        self.settings = one_row("read_session", using) if is_careful else None

    def after_call(self, position: int, seconds: float) -> None:
        """Raise what the handler did wrong; keep its on_commit functions apart from others'."""
        if self.status() != database.IN_TRANSACTION or self.connection.needs_rollback:
            self._raise_what_is_broken()
        if seconds > ROUND_TRIP:
            if connections[self.using] is not self.connection or self.is_replaced():
                raise SessionEnded(reason="the handler replaced its connection")
            if self.name() != self.mark or (seconds > LONG_CALL and database.has_input(self.raw)):
                self._ask_server()
        if self.settings is not None:
            self._check_all(self.settings)
        if len(self.connection.run_on_commit) != self.hooks:
            self._keep_apart(position)

    def undo(self) -> None:
        """Mark the innermost block for a rollback, in the session of the claim."""
        connection = connections[self.using] = self.connection
        if not connection.in_atomic_block:
            return
        if connection.connection is not self.raw:
            if connection.connection is not None:
                connection.connection.close()
            connection.connection = self.raw
        transaction.set_rollback(True, using=self.using)

    def is_replaced(self) -> bool:
        """Return whether Django uses another session, or none, since the handler was called."""
        return self.connection.connection is not self.raw or not self.connection.in_atomic_block

    def _raise_what_is_broken(self) -> None:
        if database.is_lost(self.raw):
            raise SessionEnded(reason="the handler closed its connection")
        if self.status() == database.IDLE:
            raise TransactionEnded()
        raise BrokenTransaction()

    def _ask_server(self) -> None:
        """Find out, by a round trip, whether the transaction is still the claim's."""
        is_same, _ = cursors.holds(self.claim, self.using)
        if not is_same:
            raise TransactionEnded()

    def _check_all(self, settings: tuple[Any, ...]) -> None:
        """Undo SET LOCAL, then check everything that would fail at the end of the batch."""
        names = ("role", "search_path", "statement_timeout", "lock_timeout")
        values = dict(zip(names, settings, strict=True))
        if scalar("restore_session", self.using, **values):
            raise BrokenTransaction(
                "The handler made its transaction read-only, so that its progress cannot be "
                "written: leave out SET TRANSACTION READ ONLY."
            )
        is_same, is_unchanged = cursors.holds(self.claim, self.using)
        if not is_same:
            raise TransactionEnded()
        if not is_unchanged:
            raise CursorChanged()
        self.connection.check_constraints()

    def _keep_apart(self, position: int) -> None:
        """Let each function that the handler gave to on_commit() run whatever the others do."""
        hooks = self.connection.run_on_commit
        for index in range(self.hooks, len(hooks)):
            savepoints, function, is_robust = hooks[index]
            run = functools.partial(_run_hook, function, self.group, self.claim, position)
            hooks[index] = (savepoints, run, is_robust)
        self.hooks = len(hooks)


def _run_hook(
    function: Callable[[], object], group: ConsumerGroup, claim: Claim, position: int
) -> None:
    try:
        function()
    except KeyboardInterrupt:
        raise
    except BaseException:
        logger.exception(
            "group %s: an on_commit() function of the message at position %d raised an error; the "
            "message counts as handled",
            group.name,
            position,
            extra={"group": group.name, "channel": claim.channel, "position": position},
        )
