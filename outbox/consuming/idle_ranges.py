"""What one worker knows to be idle: the ranges that have nothing up to their channel's horizon.

Nothing can appear at or below a horizon, so what was found idle stays idle up to there, until
the range is moved back or reshaped, which changes its generation. Only the messages above are
looked at again, once for all ranges of a channel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..sql import array


class KnownRange(NamedTuple):
    """A slot range as a session saw it last."""

    id: int
    """Of its cursor."""
    generation: int
    channel: str
    slot_from: int
    slot_to: int


class IdleRanges:
    """Ranges without a message up to the horizons of `log`, by the ids of their cursors.

    `log`: which log that is; "" before the first `move`. One session's knowledge: a server that
    crashed may hand out the same positions again.
    """

    def __init__(self) -> None:
        self.horizons: dict[str, int] = {}
        self.log = ""
        self._ranges: dict[int, KnownRange] = {}

    def __len__(self) -> int:
        return len(self._ranges)

    def add(self, idle: KnownRange, horizon: int) -> None:
        """Note a range that has nothing up to `horizon`, if that is still the channel's."""
        if self.horizons.get(idle.channel) == horizon:
            self._ranges[idle.id] = idle

    def discard(self, cursor_id: int) -> None:
        """Forget a range."""
        self._ranges.pop(cursor_id, None)

    def parameters(self, channels: Sequence[str] = ()) -> dict[str, Any]:
        """Return what is known for the statements; `channels`: those that give them numbers."""
        ranges = self._ranges.values()
        numbers = {channel: number for number, channel in enumerate(channels, 1)}
        return {
            "idle_ids": array(self._ranges),
            "idle_generations": array(each.generation for each in ranges),
            "idle_numbers": array(numbers.get(each.channel, 0) for each in ranges),
            "idle_first": array(each.slot_from for each in ranges),
            "idle_last": array(each.slot_to for each in ranges),
            "idle_horizons": array(self.horizons[each.channel] for each in ranges),
        }

    def move(self, horizons: Mapping[str, int], woken: Iterable[int], log: str) -> None:
        """Move on to new horizons; forget the ranges that have a message up to them."""
        self.log = log
        for cursor_id in woken:
            self.discard(cursor_id)
        for channel, horizon in horizons.items():
            self.horizons[channel] = max(horizon, self.horizons.get(channel, 0))

    def clear(self) -> None:
        """Forget all ranges."""
        self._ranges.clear()
