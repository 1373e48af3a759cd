"""Publish messages inside the business transaction.

A message exists if and only if the transaction, or savepoint, that published it commits.
Publishing waits for nobody and talks to no other service.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from django.apps import apps
from django.db import router, transaction

from . import events, message_log
from .conf import settings
from .exceptions import TransactionRequired

Headers = Mapping[str, Any] | None


def publish(event: events.Event, *, headers: Headers = None, using: str | None = None) -> int:
    """Publish one event to its channel and return its position.

    `headers`: a mapping that travels beside the payload; any JSON values.
    `using`: the database alias; by default the one the router writes messages to.

    Raises TransactionRequired outside `atomic()`, InvalidEvent, InvalidKey, UnencodableValue
    and NulCharacter; then nothing is stored.
    """
    alias = _writable(using)
    return message_log.append(events.draft(event, headers), alias)


def publish_many(
    batch: Iterable[events.Event], *, headers: Headers = None, using: str | None = None
) -> list[int]:
    """Publish events with one statement and return their positions, in the same order.

    The events may belong to several channels. `headers` go with each of them. Arguments and
    errors as for `publish`.
    """
    alias = _writable(using)
    return message_log.append_many([events.draft(event, headers) for event in batch], alias)


def publish_raw(
    channel: str,
    type: str,
    payload: Any,
    *,
    key: events.Key = None,
    headers: Headers = None,
    using: str | None = None,
) -> int:
    """Publish a message without an event class and return its position.

    `channel`: 1 to 63 characters. `type`: the name on the wire. `payload`: any JSON value.
    `key`: text or a number, or None for no key. Other arguments and errors as for `publish`,
    and InvalidChannel.
    """
    alias = _writable(using)
    draft = events.Draft(
        events.valid_channel(channel),
        events.key_text(key),
        events.valid_text(type, "the type"),
        payload,
        headers,
    )
    return message_log.append(draft, alias)


def _writable(using: str | None) -> str:
    alias = using or router.db_for_write(apps.get_model("outbox", "Message"))
    if settings().require_transaction and not transaction.get_connection(alias).in_atomic_block:
        raise TransactionRequired(using=alias)
    return alias
