"""Where a reset leads to: the ways to name a new position, turned into positions.

Positions are brought into the log's own range: not before its first message, and not beyond the
horizon, where messages may still appear.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from django.db import connections

from .. import message_log
from ..consuming.cursor_rows import CursorRow, known_group, see
from ..exceptions import InvalidReset, InvalidTime
from ..groups import ConsumerGroup
from ..sql import one_row, run_statement, scalar

CLOCK_SKEW = datetime.timedelta(seconds=10)
"""How far times of publication may be out of order with positions, for a reset to a time."""

FIRST_TIME = datetime.datetime.min.replace(tzinfo=datetime.UTC)
"""The first time that Python can name."""

Target = Callable[[CursorRow], int]


class RangePosition(NamedTuple):
    """Where a range of slots of a channel stands, or is to stand."""

    channel: str
    slot_from: int
    slot_to: int
    position: int


class ResetTargets:
    """Turns the ways to name a new position into positions, in the log as it is now."""

    def __init__(self, using: str) -> None:
        self.using = using
        self.latest = message_log.horizon(using)
        first = one_row("first_message", using, position=0)
        self.earliest = min(first[0] - 1, self.latest) if first else self.latest
        with connections[using].cursor() as cursor:
            run_statement(cursor, "removed_to")
            self.removed_to: dict[str, int] = dict(cursor.fetchall())

    def resolve(self, **ways: Any) -> Target:
        """Return the target of the one way that is not None; raises InvalidReset."""
        given = {name: value for name, value in ways.items() if value is not None}
        if len(given) != 1:
            raise InvalidReset(
                f"Say in exactly one way where to: one of {', '.join(ways)}; "
                f"given: {', '.join(given) or 'none'}."
            )
        ((way, value),) = given.items()
        target: Target = getattr(self, f"_{way}")(value)
        return target

    def clamp(self, position: int, channel: str) -> int:
        """Return the nearest position from which the log still has all of a channel."""
        earliest = max(self.earliest, self.removed_to.get(channel, 0))
        return max(min(position, self.latest), min(earliest, self.latest))

    def position_before(self, time: datetime.datetime) -> int:
        """Return the position before the first message published at a time or later.

        Searches by halves for a message well before it, then goes on from there one by one.
        Raises InvalidTime when the time has no zone.
        """
        if time.tzinfo is None:
            raise InvalidTime(time=time.isoformat())
        earliest = (FIRST_TIME + datetime.timedelta(days=2)).astimezone(time.tzinfo)
        well_before = max(time, earliest) - CLOCK_SKEW
        place = {"low": self.earliest + 1, "high": self.latest + 1, "time": well_before}
        low = scalar("first_place_of_time", self.using, **place)
        first = scalar("first_message_since", self.using, position=low, time=time)
        return self.latest if first is None else int(first) - 1

    def _position(self, position: int) -> Target:
        return lambda row: position

    def _to_earliest(self, _: bool) -> Target:
        return lambda row: self.earliest

    def _to_latest(self, _: bool) -> Target:
        return lambda row: self.latest

    def _shift_by(self, delta: int) -> Target:
        return lambda row: row.position + delta

    def _to_time(self, time: datetime.datetime) -> Target:
        position = self.position_before(time)
        return lambda row: position

    def _by_duration(self, duration: datetime.timedelta) -> Target:
        now = scalar("read_clock", self.using)
        try:
            time = now - duration
        except OverflowError:
            time = FIRST_TIME if duration > datetime.timedelta(0) else now
        return self._to_time(time)

    def _to_group(self, other: ConsumerGroup | str) -> Target:
        name = known_group(other, self.using)
        return self._places([RangePosition(*row[1:5]) for row in see(name, self.using)])

    def _places(self, places: Sequence[RangePosition]) -> Target:
        """The lowest position among the places that lie in a range; they must cover it."""

        def target(row: CursorRow) -> int:
            shared = [
                place
                for place in places
                if place.channel == row.channel
                and place.slot_from <= row.slot_to
                and place.slot_to >= row.slot_from
            ]
            covered = sum(
                min(place.slot_to, row.slot_to) - max(place.slot_from, row.slot_from) + 1
                for place in shared
            )
            if covered != row.slot_to - row.slot_from + 1:
                raise InvalidReset(
                    f"No position is given for all slots {row.slot_from}-{row.slot_to} of channel "
                    f"{row.channel!r}: reset the other channels by naming them."
                )
            return min(place.position for place in shared)

        return target
