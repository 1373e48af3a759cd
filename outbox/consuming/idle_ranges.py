"""What one worker knows to be idle: the ranges that have nothing up to a horizon.

Nothing can appear at or below a horizon, so what was found idle stays idle up to there, until
the range is moved back or reshaped, which changes its generation. Only the messages above are
looked at again, once for all ranges of a channel.
"""

from __future__ import annotations

import bisect
from typing import Any

from django.db import connections

from ..sql import array, run_statement

LONGEST_LOOK = 100_000
"""Positions; past more than that everything is forgotten and found out again range by range."""


class IdleRanges:
    """Ranges without a message up to `horizon` of `log`, by the ids of their cursors.

    `log`: which log that is; "" before the first `look`. One session's knowledge: a server that
    crashed may hand out the same positions again.
    """

    def __init__(self) -> None:
        self.horizon = 0
        self.log = ""
        self._ranges: dict[int, tuple[int, str, int, int]] = {}

    def __len__(self) -> int:
        return len(self._ranges)

    def add(self, cursor_id: int, generation: int, channel: str, slots: tuple[int, int]) -> None:
        """Note a range that has nothing up to the horizon of the last `look`."""
        self._ranges[cursor_id] = (generation, channel, *slots)

    def parameters(self) -> dict[str, str]:
        """Return ids and generations for the statements."""
        generations = (generation for generation, *_ in self._ranges.values())
        return {
            "idle_ids": array(self._ranges),
            "idle_generations": array(generations),
            "log": self.log,
        }

    def look(self, horizon: int, using: str, log: str = "") -> None:
        """Move on to a new horizon; forget the ranges that have a message up to it."""
        self.log = log
        if horizon <= self.horizon:
            return
        if horizon - self.horizon > LONGEST_LOOK:
            self._ranges.clear()
        elif self._ranges:
            self._forget(self._read_slots(horizon, using))
        self.horizon = horizon

    def _read_slots(self, horizon: int, using: str) -> dict[str, list[int]]:
        channels = sorted({channel for _, channel, _, _ in self._ranges.values()})
        parameters: dict[str, Any] = {"channels": channels, "after": self.horizon, "until": horizon}
        with connections[using].cursor() as cursor:
            run_statement(cursor, "read_slots", parameters)
            return {channel: sorted(slots) for channel, slots in cursor.fetchall()}

    def _forget(self, seen: dict[str, list[int]]) -> None:
        self._ranges = {
            cursor_id: known
            for cursor_id, known in self._ranges.items()
            if not _has_any(seen[known[1]], known[2], known[3])
        }


def _has_any(slots: list[int], first: int, last: int) -> bool:
    index = bisect.bisect_left(slots, first)
    return index < len(slots) and slots[index] <= last
