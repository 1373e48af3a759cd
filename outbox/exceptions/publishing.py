"""Why a message is not published."""

from __future__ import annotations

from typing import Any

from django.db import IntegrityError

from .outbox_error import OutboxError


class TransactionRequired(OutboxError):
    """publish() was called outside transaction.atomic() on database {using!r}, so the message \
could exist without its business change. Wrap both in atomic(using={using!r}), or set \
OUTBOX["REQUIRE_TRANSACTION"] = False."""

    using: str


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
    """{name} does not fit into a message, which takes at most 268 MB of JSON: {reason}. \
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
    """{path} contains a NUL character (\\x00), which PostgreSQL cannot store in JSON or text: \
remove it before publishing."""

    path: str


class PositionTaken(OutboxError, IntegrityError):
    """The log has a row at the next position of its sequence: the sequence is behind the log, as \
after a restore or a logical upgrade. Run this SQL in the database: {fix}"""

    fix: str


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
