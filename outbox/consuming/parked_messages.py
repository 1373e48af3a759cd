"""The table of parked messages: insert, list, and remove the first one of a key.

The parked messages of one key stay in position order; a message without a key stands alone.
Every change runs under the lock of the cursor row that covers the slot of the key, so a worker
sees a key either before the change or after it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from django.db import connections, transaction

from .. import groups, signals
from ..exceptions import NotParked, OutboxError, StaleClaim, UnknownGroup
from ..messages import Message
from ..sql import run_statement
from . import cursors, failures
from .cursors import Claim
from .failures import Failure

RESHAPES = 20
"""How many splits and merges of a range to allow while waiting for its lock."""


@dataclasses.dataclass(frozen=True, slots=True)
class ParkedKey:
    """The parked messages of one key in a channel, or one message without a key."""

    group: str
    channel: str
    key: str | None
    slot: int
    position: int
    """Of its first message when it was looked up."""
    count: int = 1
    """Of its messages then."""


def blocked_keys(claim: Claim, keys: Iterable[str | None], using: str) -> set[str]:
    """Return the keys that have a parked message in the claim's range.

    Of all keys when few messages are parked there, else at least of `keys`.
    """
    wanted = list({key for key in keys if key is not None})
    parameters: dict[str, Any] = {
        "group": claim.group,
        "channel": claim.channel,
        "slot_from": claim.slot_from,
        "slot_to": claim.slot_to,
        "keys": wanted,
    }
    name = "parked_keys" if claim.parked <= len(wanted) else "blocked_keys"
    with connections[using].cursor() as cursor:
        run_statement(cursor, name, parameters)
        return {key for (key,) in cursor.fetchall()}


def park(failure: Failure, using: str) -> None:
    """Store a message that its group gave up on, in the transaction that moves past it."""
    parameters = {
        **_error_columns(failure),
        "replayed": failure.message.replayed,
        "failing_seconds": failure.failing_seconds,
    }
    _execute("park_message", parameters, using)


def park_blocked(claim: Claim, positions: Sequence[int], using: str) -> None:
    """Park messages whose keys are blocked, in the transaction that moves past them.

    Raises StaleClaim when one of the keys is not blocked any more.
    """
    parameters = {
        "group": claim.group,
        "positions": list(positions),
        "max_position": claim.max_position,
    }
    if _execute("park_blocked", parameters, using) != len(positions):
        raise StaleClaim(cursor=claim.id)


def list_keys(group: str, key: str | None, using: str) -> list[ParkedKey]:
    """Return the parked keys of a group, or one of them, by their first positions."""
    with connections[using].cursor() as cursor:
        run_statement(cursor, "list_parked_keys", {"group": group, "key": key})
        return [ParkedKey(group, *row) for row in cursor.fetchall()]


def count(parked_key: ParkedKey, using: str) -> int:
    """Return how many messages of a key are parked now."""
    with connections[using].cursor() as cursor:
        run_statement(cursor, "count_parked_of_key", dataclasses.asdict(parked_key))
        return int(cursor.fetchone()[0])


def lock(parked_key: ParkedKey, using: str) -> Claim:
    """Lock the cursor row that covers a key until commit, and return it."""
    for _ in range(RESHAPES):
        if claim := cursors.lock_slot(parked_key.group, parked_key.channel, parked_key.slot, using):
            return claim
    raise OutboxError(
        f"Group {parked_key.group!r} has no cursor for slot {parked_key.slot} of channel "
        f"{parked_key.channel!r}: "
        "let a worker consume the group once, which creates it."
    )


def first(parked_key: ParkedKey, using: str) -> tuple[Message, float] | None:
    """Return the first parked message of a key, and the seconds since its first failure."""
    with connections[using].cursor() as cursor:
        run_statement(cursor, "first_parked", dataclasses.asdict(parked_key))
        row = cursor.fetchone()
    if row is None:
        return None
    position, key, type_name, payload, headers, created_at, attempts, replayed, seconds = row
    message = Message(
        position,
        parked_key.channel,
        key,
        type_name,
        attempts + 1,
        replayed,
        parked_key.group,
        payload,
        headers,
        created_at,
    )
    return message, seconds or 0.0


def record_failure(failure: Failure, using: str) -> None:
    """Record that a parked message failed again."""
    _execute("fail_parked", _error_columns(failure), using)


def release(parked_key: ParkedKey, position: int, using: str) -> int:
    """Delete a parked message; return how many of its key are left. Raises NotParked."""
    parameters = {"group": parked_key.group, "position": position}
    if _execute("release_parked", parameters, using) != 1:
        raise NotParked(group=parked_key.group, wanted=f"at position {position}")
    left = count(parked_key, using)
    if parked_key.key is not None and not left:
        transaction.on_commit(partial(tell_released, parked_key), using=using)
    return left


def tell_released(parked_key: ParkedKey) -> None:
    """Send key_released for a key without parked messages."""
    try:
        sender = groups.get(parked_key.group)
    except UnknownGroup:
        sender = None
    signals.key_released.send_robust(sender=sender, channel=parked_key.channel, key=parked_key.key)


def _error_columns(failure: Failure) -> dict[str, Any]:
    error = failure.error
    return {
        "group": failure.group.name,
        "position": failure.message.position,
        "reason": failure.reason,
        "attempts": failure.message.attempt,
        "error_class": f"{type(error).__module__}.{type(error).__qualname__}",
        "error": failures.error_text(error),
        "traceback": failures.traceback_text(error),
    }


def _execute(name: str, parameters: dict[str, Any], using: str) -> int:
    with connections[using].cursor() as cursor:
        run_statement(cursor, name, parameters)
        return int(cursor.rowcount)
