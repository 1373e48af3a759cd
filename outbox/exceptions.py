"""Every error this library raises on purpose.

One base, `OutboxError`. The class docstring is the default message, the values that
belong to it are attributes, and the message says what to do next.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import IntegrityError, ProgrammingError
from django.utils.connection import ConnectionDoesNotExist


def nearest(name: object, known: Iterable[str]) -> str | None:
    """Return the known name that `name` is probably meant to be, None without one.

    Case, spaces and punctuation do not count.
    """
    simple = {_simplified(each): each for each in known}
    found = difflib.get_close_matches(_simplified(str(name)), simple, n=1, cutoff=0.75)
    return simple[found[0]] if found else None


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return " Did you mean …?" with the nearest known name, "" without one."""
    found = nearest(name, known)
    return f" Did you mean {found!r}?" if found else ""


def _simplified(name: str) -> str:
    return re.sub(r"[\W_]", "", name).casefold() or name


class OutboxError(Exception):
    """The outbox could not do what was asked."""

    def __init__(self, message: str | None = None, **values: Any) -> None:
        for name, value in values.items():
            setattr(self, name, value)
        super().__init__(message or (type(self).__doc__ or "").strip().format(**values))


class TransactionRequired(OutboxError):
    """publish() was called outside transaction.atomic() on database {using!r}, so the message \
could exist without its business change. Wrap both in atomic(using={using!r}), or set \
OUTBOX["REQUIRE_TRANSACTION"] = False."""

    using: str


class NotInstalled(OutboxError, ImproperlyConfigured):
    """The app {app!r} is not installed, and the outbox needs it: add {app!r} to INSTALLED_APPS."""

    app: str


class MissingExtra(OutboxError, ImproperlyConfigured):
    """The module {module!r} is not installed: `pip install 'django-pgoutbox[{extra}]'`."""

    extra: str
    module: str


class NotMigrated(OutboxError, ProgrammingError):
    """Database {using!r} lacks a table or function of the outbox: run `{command}`. ({reason})"""

    using: str
    command: str
    reason: str

    def __init__(self, using: str, reason: str) -> None:
        option = "" if using == "default" else f" --database {using}"
        super().__init__(using=using, command=f"manage.py migrate outbox{option}", reason=reason)


class NotPostgres(OutboxError):
    """Database {using!r} is {vendor}; the outbox needs PostgreSQL: let DATABASE_ROUTERS send the \
app 'outbox' to a PostgreSQL database."""

    using: str
    vendor: str


class UnknownDatabase(OutboxError, ConnectionDoesNotExist):
    """There is no database {using!r}."""

    using: str
    known: list[str]

    def __init__(self, using: str, known: list[str]) -> None:
        super().__init__(
            f"DATABASES has no alias {using!r}.{did_you_mean(using, known)} "
            f"Its aliases: {', '.join(known)}.",
            using=using,
            known=known,
        )


class InvalidChannel(OutboxError, ValueError):
    """{channel!r} is not a channel name: use text of 1 to 63 characters without NUL."""

    channel: Any


class UnknownChannel(OutboxError, LookupError):
    """Neither this project nor the log has channel {channel!r}.{suggestion}"""

    channel: str
    suggestion: str


class UnknownType(OutboxError, LookupError):
    """Neither this project nor the log has messages of type {type!r} there.{suggestion}"""

    type: str
    suggestion: str


class InvalidTypeName(OutboxError, ValueError):
    """{name!r} is not the name of a message type: use text of 1 character or more, without NUL."""

    name: Any


class InvalidHeaders(OutboxError, TypeError):
    """{headers!r} cannot be headers: {reason}."""

    headers: Any
    reason: str


class InvalidKey(OutboxError, TypeError):
    """{key!r} ({kind}) cannot be a message key: use text, a finite number or a UUID, or None for \
no key."""

    key: Any
    kind: str


class InvalidEvent(OutboxError, TypeError):
    """{event!r} is not an event with a channel: publish an instance of an outbox.Event subclass \
declared with channel="…", or use publish_raw()."""

    event: Any


class PayloadTooLarge(OutboxError, ValueError):
    """{name} does not fit into a jsonb value of PostgreSQL, which takes at most 268 MB: {reason}. \
Store the data elsewhere, and publish where it is."""

    name: str
    reason: str


class InvalidField(InvalidEvent):
    """{event}.{field} holds {value!r}, which could not be read back: {reason}. Publish a value of \
the declared type, or change the field's annotation."""

    event: str
    """The class of the event."""
    field: str
    """The path of the field: `lines[0].price`; empty when the reason names none."""
    value: Any
    """What JSON holds there."""
    reason: str


class InvalidGroup(OutboxError, ValueError):
    """A consumer group is declared wrongly."""


class InvalidCapture(OutboxError, ValueError):
    """A capture() is declared wrongly."""


class InvalidSnapshot(OutboxError, ValueError):
    """A snapshot cannot be taken as asked."""


class InvalidContext(OutboxError, ValueError):
    """outbox.context() cannot carry {name!r}: that header is the outbox's own. Use another name."""

    name: str


class UnencodableValue(OutboxError, TypeError):
    """{path} holds {shown} ({kind}), which JSON cannot carry: convert it before publishing, \
or declare the event's field with a type that msgspec encodes."""

    path: str
    value: Any
    kind: str
    shown: str
    """The value as Python writes it, shortened."""


class NulCharacter(OutboxError, ValueError):
    """{path} contains a NUL character (\\x00), which PostgreSQL cannot store in jsonb or text: \
remove it before publishing."""

    path: str


class DuplicateEventType(OutboxError):
    """Channel {channel!r} already has an event type {type!r}, declared by {first}; {second} \
needs another name: give it type="…"."""

    channel: str
    type: str
    first: str
    second: str


class DuplicateHandler(OutboxError):
    """Group {group!r} already handles {type!r} with {first}: one handler per type and group; \
declare a second group to do something else with the same messages."""

    group: str
    type: str
    first: str


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


class UnknownGroup(OutboxError, LookupError):
    """There is no consumer group {name!r}."""

    name: str
    known: list[str]

    def __init__(self, name: str, known: list[str]) -> None:
        listed = ", ".join(known) or "none: declare one in an app's consumers.py"
        super().__init__(
            f"There is no consumer group {name!r}.{did_you_mean(name, known)} "
            f"Known groups: {listed}.",
            name=name,
            known=known,
        )


class BrokenTransaction(OutboxError):
    """The handler returned normally but left its database transaction broken. An error of the \
database was swallowed: wrap the statement that may fail in transaction.atomic()."""


class TransactionEnded(BrokenTransaction):
    """The handler ended the transaction that it was called in, by COMMIT, ROLLBACK or the \
driver's commit() or rollback(). What it committed stays, and the message counts as failed. Use \
transaction.atomic() for a part of the work; a handler that needs transactions of its own belongs \
in a group with delivery="at_least_once"."""


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


class ConnectionLost(OutboxError):
    """The connection to the database was lost."""


class ImpossiblePosition(OutboxError):
    """Positions disagree, as after a restore or a logical upgrade: {detail}. Run this SQL in the \
database, then start again: {fix}"""

    detail: str
    fix: str


class PositionTaken(OutboxError, IntegrityError):
    """The log has a row at the next position of its sequence: the sequence is behind the log, as \
after a restore or a logical upgrade. Run this SQL in the database: {fix}"""

    fix: str


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


class ScaleUnfinished(OutboxError):
    """Group {group!r} does not have {to} ranges in channel {channel!r} yet: some neighbours have \
not met at one position within {seconds:g} s. All ranges are in order and go on. Run the command \
again while workers run; `manage.py outbox describe {group} --ranges` shows who is behind."""

    group: str
    channel: str
    to: int
    seconds: float


class NotParked(OutboxError, LookupError):
    """Group {group!r} has no parked message {wanted}: `outbox parked {group}` lists them."""

    group: str
    wanted: str


class InvalidReset(OutboxError, ValueError):
    """A reset does not say where to."""


class InvalidSkip(OutboxError, ValueError):
    """The message cannot be skipped."""


class InvalidPause(OutboxError, ValueError):
    """A pause has to end in the future, at a time with a zone: {until}."""

    until: Any


class LogIsBusy(OutboxError):
    """The log was in use all the time, so that no segment could be attached or removed within \
{seconds:g} s. Try again when these transactions have ended: {holders}"""

    seconds: float
    holders: str


class InvalidRule(OutboxError, ValueError):
    """{place} is {value!r}; a rule is "forever", a duration such as "90 days", "latest" (the \
newest message of each key), or "latest 7 days" (and those without a key for so long); units are \
seconds, minutes, hours, days and weeks. CHANNELS is {{"channel": {{"keep": rule}}}}."""

    place: str
    value: Any


class ReaderCameBack(OutboxError):
    """Group {group!r} went back in channel {channel!r}, to {position}, and may still read it."""

    group: str
    channel: str
    position: int


class ArchiveBroken(OutboxError):
    """The archived file {name!r} cannot be used: {reason}. Nothing was removed or restored."""

    name: str
    reason: str


class CannotRestore(OutboxError):
    """The archived file {name!r} cannot be restored: {reason}."""

    name: str
    reason: str


class CannotEndSession(OutboxError):
    """The session of server process {pid} was not ended: {cause}."""

    pid: int
    cause: str


class PlanChanged(OutboxError):
    """Nothing was done, since the plan does not hold any more."""

    changes: list[str]
    """A sentence for each difference."""

    def __init__(self, changes: list[str]) -> None:
        doc = (type(self).__doc__ or "").strip()
        super().__init__(f"{doc} {' '.join(changes)}", changes=changes)


class StreamConflict(OutboxError):
    """Stream {key!r} of channel {channel!r} stands at version {actual}, not at {expected}: \
another transaction appended to it. Load it again, decide again, and publish with its new version; \
outbox.decide() does so by itself."""

    channel: str
    key: str
    expected: int | None
    """The version that the writer expected."""
    actual: int | None
    """The version of the stream; None when the database ended a deadlock of two writers."""


class InvalidLockFile(OutboxError, ValueError):
    """{path} is no lock file of events: {reason}. Write it with `manage.py outbox events lock`."""

    path: Any
    reason: str


class InvalidStream(OutboxError, ValueError):
    """A stream is used wrongly."""


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
