"""Cursors: where each group is in each channel, per range of slots.

The cursor row is the only lock. Whoever changes anything about a slot range of a group holds
its row until commit; `generation` rises when a range is moved or reshaped from outside, and
an advance that knows an older one is refused.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from django.db import connections, transaction

from . import message_log
from .exceptions import StaleClaim
from .groups import ConsumerGroup
from .queries import statement

SLOTS = 32768
IDLE_GAP = 2000
"""Positions a range without messages may lag behind before it is moved to the horizon."""
RATE_SECONDS = 30.0
"""Time constant of a range's average rate."""


@dataclasses.dataclass(frozen=True, slots=True)
class Claim:
    """A locked cursor row, as it was when it was locked."""

    id: int
    group: str
    channel: str
    slot_from: int
    slot_to: int
    position: int
    generation: int
    seen_position: int
    parked: int
    attempts: int
    rate: float
    """Messages per second, averaged over the last half minute or so."""
    idle_seconds: float
    """Since its last commit."""
    failing_seconds: float | None
    """Since the first failure of the message at hand; None when it has not failed."""

    @property
    def slots(self) -> tuple[int, int]:
        """First and last slot, both inclusive."""
        return self.slot_from, self.slot_to


@dataclasses.dataclass(slots=True)
class Advance:
    """What one batch did to its range: the change of the cursor row."""

    position: int
    processed: int = 0
    skipped: int = 0
    parked: int = 0
    attempts: int = 0
    retry_delay: float | None = None
    """Seconds until the next message of the range may be tried; None: at once."""
    last_error: str = ""

    @property
    def count(self) -> int:
        """Messages that the range moved past."""
        return self.processed + self.skipped + self.parked


def register(groups: Iterable[ConsumerGroup], using: str) -> None:
    """Create the cursors of groups that have none yet in one of their channels.

    A group that starts at "latest" begins at the horizon, so that a message whose
    transaction is still open is not lost to it.
    """
    for group in groups:
        position = message_log.horizon(using) if group.start == "latest" else 0
        for channel in group.channels:
            _register_channel(group, channel, position, using)


def _register_channel(group: ConsumerGroup, channel: str, position: int, using: str) -> None:
    bounds = slot_ranges(group.parallelism)
    with transaction.atomic(using=using), connections[using].cursor() as cursor:
        cursor.execute(statement("lock_group_shape"), {"group": group.name, "channel": channel})
        cursor.execute(
            statement("create_cursors"),
            {
                "group": group.name,
                "channel": channel,
                "position": position,
                "slots_from": [first for first, _ in bounds],
                "slots_to": [last for _, last in bounds],
            },
        )


def slot_ranges(count: int) -> list[tuple[int, int]]:
    """Return `count` neighbouring ranges that cover all slots, of nearly equal size."""
    edges = [SLOTS * index // count for index in range(count + 1)]
    return [(edges[index], edges[index + 1] - 1) for index in range(count)]


def claim(groups: Sequence[ConsumerGroup], horizon: int, using: str) -> Claim | None:
    """Lock the least recently served cursor that has a message up to `horizon`, if any.

    Skips cursors that others hold, and those that are paused, leased or backing off.
    Must run inside a transaction, which keeps the lock.
    """
    pairs = [(group.name, channel) for group in groups for channel in group.channels]
    parameters = {
        "groups": [name for name, _ in pairs],
        "channels": [channel for _, channel in pairs],
        "horizon": horizon,
    }
    with connections[using].cursor() as cursor:
        cursor.execute(statement("claim_cursor"), parameters)
        row = cursor.fetchone()
    return Claim(*row) if row else None


def advance(claim: Claim, change: Advance, using: str) -> None:
    """Write what a batch did to its cursor, in the transaction of the batch.

    Raises StaleClaim when the cursor was moved or reshaped since the claim.
    """
    parameters: dict[str, Any] = {
        "id": claim.id,
        "generation": claim.generation,
        "position": change.position,
        "processed": change.processed,
        "skipped": change.skipped,
        "parked": change.parked,
        "rate": _rate(claim, change.count),
        "attempts": change.attempts,
        "retry_delay": change.retry_delay,
        "last_error": change.last_error,
    }
    with connections[using].cursor() as cursor:
        cursor.execute(statement("advance_cursor"), parameters)
        if cursor.rowcount != 1:
            raise StaleClaim(cursor=claim.id)


def _rate(claim: Claim, count: int) -> float:
    seconds = max(claim.idle_seconds, 0.001)
    kept = math.exp(-seconds / RATE_SECONDS)
    return claim.rate * kept + count * (1 - kept) / seconds


def settle(groups: Sequence[ConsumerGroup], horizon: int, using: str) -> int:
    """Move ranges that have nothing up to `horizon` there, and return how many moved.

    Only those that lag by more than `IDLE_GAP` positions: it keeps the search for pending
    messages short without a write per message.
    """
    parameters = {
        "groups": [group.name for group in groups],
        "horizon": horizon,
        "idle_gap": IDLE_GAP,
    }
    with connections[using].cursor() as cursor:
        cursor.execute(statement("settle_cursors"), parameters)
        return int(cursor.rowcount)


def next_retry(groups: Sequence[ConsumerGroup], using: str) -> float | None:
    """Return the seconds until the earliest retry, resume or lease end, None when none is due."""
    with connections[using].cursor() as cursor:
        cursor.execute(statement("next_retry"), {"groups": [group.name for group in groups]})
        seconds = cursor.fetchone()[0]
    return None if seconds is None else max(0.0, float(seconds))
