"""Publish messages inside the business transaction.

A message exists if and only if the transaction, or savepoint, that published it commits.
Publishing waits for no other session and talks to no other service.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from django.db import transaction

from . import events, message_log
from .conf import is_number, log_alias, settings
from .encoding import Key, key_text
from .exceptions import (
    InvalidEvent,
    InvalidHeaders,
    InvalidStream,
    OutboxError,
    TransactionRequired,
)
from .messages import RESERVED_HEADERS, VERSION_HEADER, Draft, draft_of

Headers = Mapping[str, Any] | None


def publish(
    event: events.Event,
    *,
    expected: int | None = None,
    headers: Headers = None,
    using: str | None = None,
) -> int:
    """Publish one event to its channel and return its position.

    `expected`: for a channel of streams, the version at which the stream of the event's key must
    stand; 0: it must be new; None: any.

    `headers`: a mapping that travels beside the payload; any JSON values. The name "version" is
    taken by the event class.
    `using`: the database alias; by default the one the router writes messages to.

    Raises TransactionRequired outside `atomic()` (the block of a TestCase is none), InvalidField
    for a value that the event class could not decode, InvalidEvent, InvalidKey, InvalidHeaders,
    UnencodableValue, NulCharacter and PayloadTooLarge, and for a stream StreamConflict and
    InvalidStream; then nothing is stored. Raises UnknownDatabase, and NotMigrated where `migrate`
    was forgotten.
    """
    alias = writable_alias(using)
    draft = draft_of(event, _valid(headers))
    if events.is_stream_channel(draft.channel):
        return append_to_stream(draft, expected, alias)
    if expected is not None:
        raise InvalidStream(
            f"Channel {draft.channel!r} is none of streams, so expected={expected!r} has no "
            "meaning: declare its events with stream=True."
        )
    return message_log.append(draft, alias)


def append_to_stream(draft: Draft, expected: int | None, using: str) -> int:
    """Append a draft to the stream of its key and return its position.

    Raises InvalidStream for a draft without a key or an impossible version, StreamConflict.
    """
    if draft.key is None:
        raise InvalidStream(
            f"{draft.type} of channel {draft.channel!r} has no key, and a stream is the messages "
            "of one key: declare it with key=…"
        )
    if expected is not None and not is_number(expected, 0, 2**63 - 1, whole=True):
        raise InvalidStream(f"expected={expected!r}: use a whole number from 0 on, or None.")
    return message_log.append_to_stream(draft, expected, using)


def publish_many(
    batch: Iterable[events.Event], *, headers: Headers = None, using: str | None = None
) -> list[int]:
    """Publish events with one statement and return their positions, in the same order.

    Events of streams are appended one by one.

    The events may belong to several channels. `headers` go with each of them. Arguments and
    errors as for `publish`; an error says which event of the batch it is about, from 0 on.
    """
    alias = writable_alias(using)
    valid = _valid(headers)
    if not isinstance(batch, Iterable):
        raise InvalidEvent(
            f"publish_many({batch!r}): give a list of events, or call publish().", event=batch
        )
    drafts: list[Draft] = []
    for event in batch:
        try:
            drafts.append(draft_of(event, valid))
        except OutboxError as error:
            error.add_note(f"It is about batch[{len(drafts)}].")
            raise
    return [
        position
        for is_stream, part in itertools.groupby(drafts, _is_of_a_stream)
        for position in (
            [append_to_stream(draft, None, alias) for draft in part]
            if is_stream
            else message_log.append_many(list(part), alias)
        )
    ]


def _is_of_a_stream(draft: Draft) -> bool:
    return events.is_stream_channel(draft.channel)


def publish_raw(
    channel: str,
    type: str,
    payload: Any,
    *,
    key: Key = None,
    headers: Headers = None,
    using: str | None = None,
) -> int:
    """Publish a message without an event class and return its position.

    `channel`: 1 to 63 characters. `type`: the name on the wire. `payload`: any JSON value.
    `key`: text, a number or a UUID, or None for no key. `headers`: as for `publish`; for an event
    class of a later version than 1 they name it, as in `{"version": 2}`. Other arguments and
    errors as for `publish`, and InvalidChannel and InvalidTypeName. The payload is not compared
    with an event class, also where this process knows one of that name: the type may be newer.
    """
    alias = writable_alias(using)
    draft = Draft(
        events.valid_channel(channel),
        events.valid_type_name(type),
        payload,
        key_text(key),
        _valid(headers, may_have_version=True),
    )
    if events.is_stream_channel(channel):
        return append_to_stream(draft, None, alias)
    return message_log.append(draft, alias)


def writable_alias(using: str | None) -> str:
    """Return the alias to publish to; raises TransactionRequired outside `atomic()`."""
    alias = log_alias(using)
    if settings().require_transaction and not _is_in_own_block(alias):
        raise TransactionRequired(using=alias)
    return alias


def _is_in_own_block(alias: str) -> bool:
    """Return whether the code is in an `atomic()` of its own: those of a TestCase do not count."""
    connection = transaction.get_connection(alias)
    blocks = connection.atomic_blocks
    if blocks and getattr(blocks[-1], "_from_testcase", False):
        return False
    return bool(connection.in_atomic_block)


def _valid(headers: Any, *, may_have_version: bool = False) -> dict[str, Any] | None:
    """Return headers as a dict, None for none; raises InvalidHeaders."""
    if headers is None:
        return None
    if not isinstance(headers, Mapping):
        raise InvalidHeaders(headers=headers, reason="use a mapping")
    for name in RESERVED_HEADERS.intersection(headers):
        raise InvalidHeaders(
            headers=headers, reason=f'"{name}" is the outbox\'s own: use another name'
        )
    version = headers.get(VERSION_HEADER, 1)
    if VERSION_HEADER in headers and not may_have_version:
        raise InvalidHeaders(
            headers=headers, reason='"version" is the event class\'s own: use another name'
        )
    if not events.is_version(version):
        raise InvalidHeaders(
            headers=headers, reason='"version" is the payload\'s: use a whole number from 1 on'
        )
    return dict(headers)
