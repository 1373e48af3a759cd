"""What goes wrong while messages are handled, and what a handler raises to say so."""

from __future__ import annotations

from typing import Any

from .outbox_error import OutboxError


class ConnectionLost(OutboxError):
    """The connection to the database was lost."""


class ImpossiblePosition(OutboxError):
    """Positions disagree, as after a restore or a logical upgrade: {detail}. Run this SQL in the \
database, then start again: {fix}"""

    detail: str
    fix: str


class UndecodableMessage(OutboxError):
    """Message {position} of type {type!r} in channel {channel!r} no longer fits {event}: \
{reason}. Give new fields a default, or declare version= and upgrade()."""

    position: int
    type: str
    channel: str
    event: str
    reason: str
    is_newer: bool
    """Whether a newer release published it."""


class BrokenTransaction(OutboxError):
    """The handler returned normally but left its database transaction broken. An error of the \
database was swallowed: wrap the statement that may fail in transaction.atomic()."""


class TransactionEnded(BrokenTransaction):
    """The handler ended the transaction that it was called in, by COMMIT, ROLLBACK, PREPARE \
TRANSACTION or the driver's commit() or rollback(). What it committed stays, and the message \
counts as failed. Use transaction.atomic() for a part of the work; a handler that needs \
transactions of its own belongs in a group with delivery="at_least_once"."""


class CursorChanged(BrokenTransaction):
    """The handler changed the cursor of its own group, by a reset, skip or scale, so its work is \
rolled back. Run such operations outside handlers."""


class SessionEnded(OutboxError):
    """The handler's database session ended before the handler was done: {reason}."""

    reason: str


class NotAwaited(OutboxError, TypeError):
    """The handler returned a {kind}, which nothing runs: a handler is a plain function; make one \
of a coroutine with asgiref.sync.async_to_sync."""

    kind: str


class UnknownMessageType(OutboxError, LookupError):
    """This code does not know the type {type!r} in channel {channel!r}: deploy the release that \
declares it, name it in {group}.ignores(), or choose on_unknown="skip"."""

    type: str
    channel: str
    group: str


class StaleClaim(OutboxError):
    """The row of cursor {cursor} was changed while messages of its range were handled: it was \
reset, split, taken over, or a key was released. The messages are handled again from where the \
range stands."""

    cursor: int


class RetryAfter(OutboxError):
    """The handler asks to be tried again in {seconds} seconds."""

    seconds: float

    def __init__(self, seconds: float, message: str | None = None) -> None:
        super().__init__(message, seconds=seconds)


class PermanentError(OutboxError):
    """The handler says that trying again cannot help."""


class RecordRefused(PermanentError):
    """The destination refuses the record for good: {reason}."""

    reason: str
    sent: int
    """How many records of the batch, from the first one on, the destination has confirmed."""


class DestinationUnavailable(OutboxError):
    """The destination cannot be reached or does not work: {reason}. The relay waits and tries \
again; no message is parked."""

    reason: str
    sent: int
    """How many records of the batch, from the first one on, the destination has confirmed."""
    seconds: float | None
    """After how many seconds the destination wants the next try; None when it does not say."""


class WorkerDied(OutboxError):
    """The worker's process ended while it handled the message: {reason}."""

    reason: str


class WaitInTransaction(OutboxError):
    """Waiting for group {group!r} inside atomic() would last until the timeout: other sessions \
see what this transaction published only after its commit. Wait after the atomic() block; in a \
TestCase use outbox.testing.drain() instead."""

    group: str


class NotCaughtUp(OutboxError, TimeoutError):
    """Group {group!r} has not handled everything up to position {position} within {seconds} s: \
`manage.py outbox describe {group}` says why."""

    group: str
    position: int
    seconds: float


class FailedAt(OutboxError):
    """Raised by a batch handler to name the message that failed, and why.

    `cause`: the exception, or a text; the message is tried again as after any other error.
    """

    def __init__(self, message: Any, cause: BaseException | str) -> None:
        super().__init__(f"Message {message.position} failed: {cause}")
        self.message = message
        self.cause = cause if isinstance(cause, BaseException) else OutboxError(cause)
