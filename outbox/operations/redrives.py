"""Parking: what can be done with the messages that a group gave up on.

While a message of a key is parked, every later one of the key is parked behind it, unhandled. A
redrive handles them from the front; the key is live again when the last one is gone. Each step
holds the cursor row that covers the key, so no worker can overtake and no second redrive repeat.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from django.db import connections, transaction
from django.db.models import QuerySet

from .. import database, groups
from ..conf import log_alias
from ..consuming import crashes, failures, outcomes, parked_messages, transactional
from ..consuming.cursor_rows import known_group
from ..consuming.cursors import Claim
from ..consuming.handlers import Done, Failed
from ..consuming.outcomes import Outcome
from ..consuming.parked_messages import ParkedKey
from ..exceptions import NotParked, OutboxError
from ..groups import ConsumerGroup
from ..messages import Message
from ..models import ParkedMessage
from . import action_log
from .parked_selection import Selection

Progress = Callable[[int, int], None]
"""Called with how many messages were tried, and how many are selected."""


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
    group: ConsumerGroup | str, *, key: str | None = None, using: str | None = None
) -> QuerySet[ParkedMessage]:
    """Return the parked messages of a group, or of one of its keys, in position order.

    Raises UnknownGroup.
    """
    using = log_alias(using)
    name = known_group(group, using)
    return Selection(group=name, key=key).rows(using)


def redrive(
    group: ConsumerGroup | str,
    *,
    key: str | None = None,
    position: int | None = None,
    error: str | None = None,
    everything: bool = False,
    limit: int | None = None,
    dry_run: bool = False,
    reason: str = "",
    progress: Progress | None = None,
    using: str | None = None,
) -> Redriven:
    """Handle parked messages in this process, in order, each in a transaction of its own.

    Name what to redrive in one of four ways: `key`: the messages of a key; `position`: those of
    the key of the message there, or it alone when it has none; `error`: those of the keys whose
    first message failed with it (a class, or a part of the text); `everything`: all of the group.
    `limit`: most messages to try. `dry_run`: change nothing, only count. `reason`: stored in the
    action log. `progress`: called after each message with how many were tried and are selected.

    A message that fails again stays where it is, with its error, and nothing behind it is tried.
    Safe while workers and other redrives run. Raises NotParked when the selection is empty.
    """
    using = log_alias(using)
    the_group = groups.get(group) if isinstance(group, str) else group
    chosen = {"key": key, "position": position, "error": error, "all": everything or None}
    selected = _select(the_group.name, chosen, using)
    if dry_run:
        total = sum(parked_key.count for parked_key in selected)
        return Redriven(total if limit is None else min(total, limit), 0, (), total)
    outcomes: list[bool | StillFailing] = []
    try:
        for outcome in _try_all(the_group, selected, limit, using):
            outcomes.append(outcome)
            if progress is not None:
                progress(len(outcomes), sum(parked_key.count for parked_key in selected))
    finally:
        done = _redriven(the_group.name, selected, outcomes, using)
        new = {"handled": done.handled, "remaining": done.remaining}
        action_log.record(
            "redrive", the_group.name, using=using, old=chosen, new=new, reason=reason
        )
    return done


def _try_all(
    group: ConsumerGroup, selected: list[ParkedKey], limit: int | None, using: str
) -> Iterator[bool | StillFailing]:
    """Handle keys from the front, each up to a message that fails; at most `limit` messages."""
    tried = 0
    for parked_key in selected:
        while limit is None or tried < limit:
            outcome = _try_first(group, parked_key, using)
            if outcome is None:
                break
            tried += 1
            yield outcome
            if isinstance(outcome, StillFailing):
                break


def _redriven(
    group: str, selected: list[ParkedKey], outcomes: list[bool | StillFailing], using: str
) -> Redriven:
    key = selected[0].key if len(selected) == 1 else None
    places = {_place(parked_key) for parked_key in selected}
    left = [each for each in parked_messages.list_keys(group, key, using) if _place(each) in places]
    return Redriven(
        sum(outcome is True for outcome in outcomes),
        sum(outcome is False for outcome in outcomes),
        tuple(outcome for outcome in outcomes if isinstance(outcome, StillFailing)),
        sum(each.count for each in left),
    )


def _place(parked_key: ParkedKey) -> tuple[str, str | None, int | None]:
    """Return what a key is known by while its first messages go."""
    alone = parked_key.position if parked_key.key is None else None
    return parked_key.channel, parked_key.key, alone


def discard(
    group: ConsumerGroup | str,
    position: int,
    *,
    reason: str,
    actor: str | None = None,
    using: str | None = None,
) -> Discarded:
    """Drop a parked message for good and record who did so and why.

    `actor`: who; as `action_log.actor()` when left out. Raises NotParked.
    """
    using = log_alias(using)
    parked = _parked_at(group if isinstance(group, str) else group.name, position, using)
    parked_key = _key_of(parked)
    old = {
        "position": position,
        "channel": parked.channel,
        "key": parked.key,
        "type": parked.type,
        "error": parked.error,
    }
    with transaction.atomic(using=using):
        claim = parked_messages.lock(parked_key, using)
        remaining = _release(parked_key, claim, position, False, using)
        action_log.record("discard", parked.group, using=using, old=old, reason=reason, by=actor)
    return Discarded(parked.channel, parked.key, position, remaining)


def _try_first(
    group: ConsumerGroup, parked_key: ParkedKey, using: str
) -> bool | StillFailing | None:
    """Handle the first message of a queue; False: there is no handler; None: it is empty."""
    connection = connections[using]
    with transaction.atomic(using=using):
        claim = parked_messages.lock(parked_key, using)
        found = parked_messages.first(parked_key, using)
        if found is None:
            return None
        result = transactional.handle_alone(group, claim, found[0], using)
        if isinstance(result, Done):
            is_handled = not result.skipped
            _release(parked_key, claim, found[0].position, is_handled, using)
            return is_handled
        if not connection.needs_rollback and connection.in_atomic_block:
            return _record_failure(group, parked_key, *found, result, using)
    # The handler ended the transaction or its session: record the failure in a new one.
    if database.is_lost(connection.connection):
        connection.close()
    crashes.roll_back_prepared(claim, using)
    with transaction.atomic(using=using):
        parked_messages.lock(parked_key, using)
        return _record_failure(group, parked_key, *found, result, using)


def _record_failure(
    group: ConsumerGroup,
    parked_key: ParkedKey,
    message: Message,
    failing_seconds: float,
    failed: Failed,
    using: str,
) -> StillFailing:
    """Record that a parked message failed again."""
    failure = failures.decide(group, message, failed.cause, failing_seconds, is_parked=True)
    parked_messages.record_failure(failure, using)
    failures.report(failure, using)
    error = failures.error_line(failure.error)
    return StillFailing(parked_key.channel, parked_key.key, message.position, error)


def _release(
    parked_key: ParkedKey, claim: Claim, position: int, is_handled: bool, using: str
) -> int:
    """Take a parked message out and count it as processed or skipped; return how many are left."""
    left = parked_messages.release(parked_key, position, using)
    outcome = Outcome(claim, claim.position, int(is_handled), int(not is_handled))
    outcome.released = position
    outcomes.write(outcome, using)
    return left


def _select(group: str, chosen: dict[str, Any], using: str) -> list[ParkedKey]:
    if sum(value is not None for value in chosen.values()) != 1:
        raise OutboxError("Redrive one of: key=…, position=…, error=…, everything=True.")
    key, position, error = chosen["key"], chosen["position"], chosen["error"]
    if position is not None:
        parked_key = _key_of(_parked_at(group, position, using))
        return [dataclasses.replace(parked_key, count=parked_messages.count(parked_key, using))]
    selected = parked_messages.list_keys(group, key, using)
    if key is not None and not selected:
        raise NotParked(group=group, wanted=f"with key {key!r}")
    if error is not None:
        rows = Selection(group=group, error=error).rows(using)
        failed = set(rows.values_list("position", flat=True))
        selected = [each for each in selected if each.position in failed]
        if not selected:
            raise NotParked(group=group, wanted=f"with error {error!r}")
    return selected


def _parked_at(group: str, position: int, using: str) -> ParkedMessage:
    parked = list_parked(group, using=using).filter(position=position).first()
    if parked is None:
        raise NotParked(group=group, wanted=f"at position {position}")
    return parked


def _key_of(parked: ParkedMessage) -> ParkedKey:
    return ParkedKey(parked.group, parked.channel, parked.key, parked.slot, parked.position)
