"""The table of parked messages: put in behind a cursor, look at, take out from the front.

The parked messages of one key are a queue in position order; one without a key is a queue of its
own. Everything here but the reading happens under the lock of the cursor row that covers the
queue's slot, so a worker sees a queue either before or after.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from django.db import connections, transaction

from .. import events, groups, signals
from ..exceptions import NotParked, OutboxError, StaleClaim, UnknownGroup
from ..sql import run_statement
from . import cursors, failures
from .cursors import Claim
from .failures import Failure

RESHAPES = 20
"""How often a range may be split or merged while we wait for its lock."""


@dataclasses.dataclass(frozen=True, slots=True)
class Queue:
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
    """Keep a message that its group gave up on, in the transaction that moves past it."""
    parameters = {
        **_error_columns(failure),
        "replayed": failure.message.replayed,
        "failing_seconds": failure.failing_seconds,
    }
    _execute("park_message", parameters, using)


def park_behind(claim: Claim, positions: Sequence[int], using: str) -> None:
    """Park messages whose keys are blocked, in the transaction that moves past them.

    Raises StaleClaim when one of the keys is not blocked any more.
    """
    parameters = {
        "group": claim.group,
        "positions": list(positions),
        "max_position": claim.max_position,
    }
    if _execute("park_behind", parameters, using) != len(positions):
        raise StaleClaim(cursor=claim.id)


def queues(group: str, key: str | None, using: str) -> list[Queue]:
    """Return the queues of a group, or of one of its keys, by their first positions."""
    with connections[using].cursor() as cursor:
        run_statement(cursor, "list_queues", {"group": group, "key": key})
        return [Queue(group, *row) for row in cursor.fetchall()]


def count(queue: Queue, using: str) -> int:
    """Return how many messages a queue has now."""
    with connections[using].cursor() as cursor:
        run_statement(cursor, "count_queue", dataclasses.asdict(queue))
        return int(cursor.fetchone()[0])


def lock(queue: Queue, using: str) -> Claim:
    """Lock the cursor row that covers a queue until commit, and return it."""
    for _ in range(RESHAPES):
        if claim := cursors.lock_slot(queue.group, queue.channel, queue.slot, using):
            return claim
    raise OutboxError(
        f"Group {queue.group!r} has no cursor for slot {queue.slot} of channel {queue.channel!r}: "
        "let a worker consume the group once, which creates it."
    )


def first(queue: Queue, using: str) -> tuple[events.Message, float] | None:
    """Return the first message of a queue, and the seconds since its first failure."""
    with connections[using].cursor() as cursor:
        run_statement(cursor, "first_parked", dataclasses.asdict(queue))
        row = cursor.fetchone()
    if row is None:
        return None
    position, key, type_name, payload, headers, created_at, attempts, replayed, seconds = row
    message = events.Message(
        position,
        queue.channel,
        key,
        type_name,
        attempts + 1,
        replayed,
        queue.group,
        payload,
        headers,
        created_at,
    )
    return message, seconds or 0.0


def keep(failure: Failure, using: str) -> None:
    """Record that a parked message failed again."""
    _execute("fail_parked", _error_columns(failure), using)


def release(queue: Queue, position: int, using: str) -> int:
    """Take a message out of its queue and return how many are left in it; raises NotParked."""
    parameters = {"group": queue.group, "position": position}
    if _execute("release_parked", parameters, using) != 1:
        raise NotParked(group=queue.group, wanted=f"at position {position}")
    left = count(queue, using)
    if queue.key is not None and not left:
        transaction.on_commit(partial(_tell_released, queue), using=using)
    return left


def _tell_released(queue: Queue) -> None:
    try:
        sender = groups.get(queue.group)
    except UnknownGroup:
        sender = None
    signals.key_released.send_robust(sender=sender, channel=queue.channel, key=queue.key)


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
