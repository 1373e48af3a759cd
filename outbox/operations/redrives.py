"""Parking: what can be done with the messages that a group gave up on.

While a message of a key is parked, every later one of the key is parked behind it, unhandled. A
redrive handles them from the front; the key is live again when the last one is gone. Each step
holds the cursor row that covers the key, so no worker can overtake and no second redrive repeat.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from django.db import connections, transaction
from django.db.models import QuerySet

from .. import database, events, groups, message_log
from ..consuming import cursors, failures, parked_messages
from ..consuming.cursor_rows import known_group
from ..consuming.cursors import Advance, Claim
from ..consuming.failures import Failure
from ..consuming.parked_messages import Queue
from ..exceptions import ConnectionLost, NotParked, OutboxError, WorkerDied
from ..groups import ConsumerGroup
from ..models import ParkedMessage
from ..sql import run_statement
from . import action_log


@dataclasses.dataclass(frozen=True, slots=True)
class StillFailing:
    """A parked message that failed again; its key stays parked."""

    channel: str
    key: str | None
    position: int
    error: str


@dataclasses.dataclass(frozen=True, slots=True)
class Redriven:
    """What a redrive did."""

    handled: int
    """Messages that succeeded; in a dry run, those that would be tried."""
    skipped: int
    """Messages for which the group has no handler any more."""
    failed: tuple[StillFailing, ...]
    remaining: int
    """Messages of the selection that are parked still."""


@dataclasses.dataclass(frozen=True, slots=True)
class Discarded:
    """A parked message that was dropped."""

    channel: str
    key: str | None
    position: int
    remaining: int
    """Messages of its key that are parked still: redrive the key to handle them."""


def list_parked(
    group: ConsumerGroup | str, *, key: str | None = None, using: str = "default"
) -> QuerySet[ParkedMessage]:
    """Return the parked messages of a group, or of one of its keys, in position order.

    Raises UnknownGroup.
    """
    name = known_group(group, using)
    parked = ParkedMessage.objects.using(using).filter(group=name).order_by("position")
    return parked if key is None else parked.filter(key=key)


def redrive(
    group: ConsumerGroup | str,
    *,
    key: str | None = None,
    position: int | None = None,
    everything: bool = False,
    limit: int | None = None,
    dry_run: bool = False,
    using: str = "default",
) -> Redriven:
    """Handle parked messages in this process, in order, each in a transaction of its own.

    Name what to redrive in one of three ways: `key`: the messages of a key; `position`: those of
    the key of the message there, or it alone when it has none; `everything`: all of the group.
    `limit`: most messages to try. `dry_run`: change nothing, only count.

    A message that fails again stays where it is, with its error, and nothing behind it is tried.
    Safe while workers and other redrives run. Raises NotParked when the selection is empty.
    """
    the_group = groups.get(group) if isinstance(group, str) else group
    selected = _select(the_group.name, key, position, everything, using)
    if dry_run:
        total = sum(queue.count for queue in selected)
        return Redriven(total if limit is None else min(total, limit), 0, (), total)
    outcomes: list[bool | StillFailing] = []
    for queue in selected:
        while limit is None or len(outcomes) < limit:
            outcome = _try_first(the_group, queue, using)
            if outcome is None:
                break
            outcomes.append(outcome)
            if isinstance(outcome, StillFailing):
                break
    return Redriven(
        sum(outcome is True for outcome in outcomes),
        sum(outcome is False for outcome in outcomes),
        tuple(outcome for outcome in outcomes if isinstance(outcome, StillFailing)),
        sum(parked_messages.count(queue, using) for queue in selected),
    )


def discard(
    group: ConsumerGroup | str,
    position: int,
    *,
    reason: str,
    actor: str | None = None,
    using: str = "default",
) -> Discarded:
    """Drop a parked message for good and record who did so and why.

    `actor`: who; as `actions.actor()` when left out. Raises NotParked.
    """
    parked = _parked_at(group if isinstance(group, str) else group.name, position, using)
    queue = _queue_of(parked)
    old = {
        "position": position,
        "channel": parked.channel,
        "key": parked.key,
        "type": parked.type,
        "error": parked.error,
    }
    with transaction.atomic(using=using):
        cursor_id = parked_messages.lock(queue, using)
        remaining = parked_messages.release(queue, position, cursor_id, False, using)
        action_log.record("discard", parked.group, using=using, old=old, reason=reason, by=actor)
    return Discarded(parked.channel, parked.key, position, remaining)


def record_crash(
    cursor_id: int, position: int, error: str, *, pid: int | None = None, using: str = "default"
) -> bool:
    """Count a failed attempt of the message that a worker had in hand when its process died.

    `error`: what ended it. `pid`: its process id, needed where it held a lease. Returns False and
    changes nothing when the cursor is gone or past `position`, or leased to another process.

    It is given up only when it surely was the one: not at the first crash in a batch handler,
    after which its messages are handled one by one, and not while earlier ones wait before it.
    """
    with transaction.atomic(using=using):
        claim, holder = cursors.lock(cursor_id, using) or (None, None)
        message = None if claim is None else _message_at(claim, position, using)
        if claim is None or message is None or holder not in (None, cursors.holder(pid)):
            return False
        died = WorkerDied(reason=error)
        seconds = claim.failing_seconds_at(position)
        failure = failures.judge(groups.get(claim.group), message, died, seconds)
        if failure.verdict != "retry" and not _is_certain(claim, failure, using):
            failure = dataclasses.replace(failure, verdict="retry", retry_delay=0.0)
        if failure.verdict == "park":
            parked_messages.park(failure, using)
        cursors.advance(claim, _change_after(failure, claim.position), using)
        failures.announce(failure, using)
    return True


def _change_after(failure: Failure, position: int) -> Advance:
    if failure.verdict == "park":
        return Advance(failure.message.position, parked=1)
    if failure.verdict == "skip":
        return Advance(failure.message.position, skipped=1)
    return Advance(
        position,
        attempts=failure.message.attempt,
        failed_position=failure.message.position,
        retry_delay=failure.retry_delay,
        last_error=failure.summary,
    )


def _try_first(group: ConsumerGroup, queue: Queue, using: str) -> bool | StillFailing | None:
    """Handle the first message of a queue; False: there is no handler; None: it is empty."""
    with transaction.atomic(using=using):
        cursor_id = parked_messages.lock(queue, using)
        found = parked_messages.first(queue, using)
        if found is None:
            return None
        message, failing_seconds = found
        try:
            is_handled = _handle(group, message, using)
        except Exception as error:
            if database.is_lost(connections[using].connection):
                raise ConnectionLost(str(error)) from error
            cause = failures.cause_of(error)
            failure = Failure(group, message, cause, "stay", None, failing_seconds)
            parked_messages.keep(failure, using)
            failures.announce(failure, using)
            text = failures.error_line(cause)
            return StillFailing(queue.channel, queue.key, message.position, text)
        parked_messages.release(queue, message.position, cursor_id, is_handled, using)
        return is_handled


def _handle(group: ConsumerGroup, message: events.Message, using: str) -> bool:
    """Call the handler of a message under a savepoint; return whether there is one."""
    route = group.routes(message.channel).get(message.type)
    if route is None:
        return False
    connection = connections[using]
    check = database.transaction_check(connection)
    with transaction.atomic(using=using):
        event = route.event_of(message)
        if route.is_batch:
            route.handler([event], [message])
        else:
            route.handler(event, message)
        check()
        connection.check_constraints()
    return True


def _select(
    group: str, key: str | None, position: int | None, everything: bool, using: str
) -> list[Queue]:
    if (key is not None) + (position is not None) + everything != 1:
        raise OutboxError("Redrive one of: key=…, position=…, everything=True.")
    if position is not None:
        queue = _queue_of(_parked_at(group, position, using))
        return [dataclasses.replace(queue, count=parked_messages.count(queue, using))]
    selected = parked_messages.queues(group, key, using)
    if key is not None and not selected:
        raise NotParked(group=group, wanted=f"with key {key!r}")
    return selected


def _parked_at(group: str, position: int, using: str) -> ParkedMessage:
    parked = list_parked(group, using=using).filter(position=position).first()
    if parked is None:
        raise NotParked(group=group, wanted=f"at position {position}")
    return parked


def _queue_of(parked: ParkedMessage) -> Queue:
    return Queue(parked.group, parked.channel, parked.key, parked.slot, parked.position)


def _message_at(claim: Claim, position: int, using: str) -> events.Message | None:
    """Return the message at a position above the claim's, None when it is not of its range."""
    rows = message_log.read(
        using,
        claim.channel,
        after=max(claim.position, position - 1),
        until=position,
        slots=claim.slots,
        most=1,
    )
    return claim.message(rows[0]) if rows else None


def _is_certain(claim: Claim, failure: Failure, using: str) -> bool:
    """Tell whether a message was alone in its handler, and nothing of the range is before it."""
    route = failure.group.routes(claim.channel).get(failure.message.type)
    if route is not None and route.is_batch and failure.message.attempt == 1:
        return False
    parameters: dict[str, Any] = {
        "channel": claim.channel,
        "after": claim.position,
        "position": failure.message.position,
        "slot_from": claim.slot_from,
        "slot_to": claim.slot_to,
    }
    with connections[using].cursor() as cursor:
        run_statement(cursor, "is_next", parameters)
        return bool(cursor.fetchone()[0])
