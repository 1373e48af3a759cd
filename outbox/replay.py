"""Move the cursors of a group to another position, while workers run.

A reset holds every cursor row of the group that it moves, so it waits for the batches in hand
and no batch can straddle it. The next message handled is the first above the new position.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from django.db import connections, transaction

from . import message_log
from .groups import ConsumerGroup
from .queries import statement


@dataclasses.dataclass(frozen=True, slots=True)
class Move:
    """One cursor, from where to where."""

    id: int
    channel: str
    slot_from: int
    slot_to: int
    old: int
    new: int
    messages: int
    """How many messages will be handled again (or, when moved forward, not at all)."""

    @property
    def delta(self) -> int:
        """By how many positions the cursor moves; negative is back."""
        return self.new - self.old


def reset(
    group: ConsumerGroup,
    *,
    position: int | None = None,
    to_latest: bool = False,
    channels: Iterable[str] | None = None,
    using: str = "default",
    execute: bool = True,
) -> list[Move]:
    """Move the group's cursors to just after `position` and return the moves.

    `position`: 0 is before the earliest message; values beyond the horizon are brought back
    to it. `to_latest`: to the horizon. `channels`: only these. `execute=False`: change nothing.
    """
    horizon = message_log.horizon(using)
    target = horizon if to_latest or position is None else max(0, min(position, horizon))
    parameters = {
        "group": group.name,
        "channels": list(channels or group.channels),
        "position": target,
    }
    with transaction.atomic(using=using), connections[using].cursor() as cursor:
        cursor.execute(statement("lock_cursors" if execute else "see_cursors"), parameters)
        cursor.execute(statement("plan_reset"), parameters)
        moves = [Move(*row) for row in cursor.fetchall()]
        if execute:
            cursor.execute(statement("forget_parked_after"), parameters)
            cursor.execute(statement("reset_cursors"), parameters)
    return moves
