"""Slot ranges: how many ranges a group has in a channel, changed while workers run.

    ranges -> split at the new edges -> held until neighbours meet -> merged

A cut is done at once: both parts keep the position. Ranges merge only at one position, so those
that are ahead are held there until the others arrive. A hold ends by itself unless it is renewed:
when the caller dies, every range goes on as it is. All is done under the cursor rows' locks, and
a changed range has a new generation.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any, NamedTuple

from django.db import DatabaseError, connections, transaction

from ..conf import log_alias
from ..consuming import cursors
from ..exceptions import InvalidGroup, ScaleUnfinished
from ..groups import MOST_RANGES, ConsumerGroup
from ..sql import run_statement
from . import action_log, range_status
from .range_status import RangeStatus

HOLD_SECONDS = 10.0
"""How long a range is held for a merge without being renewed."""
STEP_SECONDS = 0.05
"""Between two checks whether ranges have met."""
LAG_BOUND = 100_000
"""Messages of the channel that are walked to count what a range has pending."""


class _Row(NamedTuple):
    id: int
    slot_from: int
    slot_to: int
    position: int
    max_position: int
    is_leased: bool
    is_stuck: bool
    """Paused or backing off."""
    has_arrived: bool
    """Whether it has nothing up to where it is held."""


def scale(
    group: ConsumerGroup | str,
    to: int,
    *,
    channel: str | None = None,
    using: str | None = None,
    timeout: float | None = 60.0,
    reason: str = "",
) -> list[RangeStatus]:
    """Give a group `to` ranges of nearly equal size, in one channel or in each of its channels.

    More ranges are there at once. Fewer need running workers, which bring neighbours to one
    position; that is waited for up to `timeout` seconds (None: forever; 0: what can be done
    now). May be ended at any moment, and repeated. `reason`: stored in the action log, in the
    transaction of the first change. Returns the ranges.

    Raises InvalidGroup for a wrong `to` or `channel`, and ScaleUnfinished at the timeout.
    """
    using = log_alias(using)
    if not 1 <= to <= MOST_RANGES:
        raise InvalidGroup(f"A group can have 1 to {MOST_RANGES} ranges in a channel, not {to}.")
    name = _known(group, using)
    changes = [
        _Rescaling(name, each, to, reason, using) for each in _channels(name, channel, using)
    ]
    began = time.monotonic()
    try:
        while unfinished := [each for each in changes if not each.step()]:
            if timeout is not None and time.monotonic() - began >= timeout:
                raise ScaleUnfinished(
                    group=name, channel=unfinished[0].channel, to=to, seconds=timeout
                )
            time.sleep(STEP_SECONDS)
    finally:
        for each in changes:
            each.release()
    ranges = range_status.current(name, LAG_BOUND, using)
    return [each for each in ranges if channel in (None, each.channel)]


def _known(group: ConsumerGroup | str, using: str) -> str:
    if isinstance(group, str):
        return group
    cursors.register([group], using)
    return group.name


def _channels(group: str, channel: str | None, using: str) -> list[str]:
    with connections[using].cursor() as cursor:
        run_statement(cursor, "list_channels", {"group": group})
        known = [name for (name,) in cursor.fetchall()]
    chosen = known if channel is None else [channel]
    if not chosen or not set(chosen) <= set(known):
        where = "any channel" if channel is None else f"channel {channel!r}"
        listed = ", ".join(known) or "none"
        raise InvalidGroup(f"Group {group!r} has no cursor in {where}; its channels: {listed}.")
    return chosen


class _Rescaling:
    """The ranges of a group in one channel, on their way to `to` of them."""

    def __init__(self, group: str, channel: str, to: int, reason: str, using: str) -> None:
        self.to = to
        self.reason: str | None = reason
        """None once the action is recorded."""
        self.group = group
        self.channel = channel
        self.using = using
        self.unmerged = cursors.slot_ranges(to)
        self.edges = {first for first, _ in self.unmerged}
        self.renew_at: dict[tuple[int, int], float] = {}

    def step(self) -> bool:
        """Do what can be done now; return whether the ranges are as asked."""
        rows = self._rows("see_shape", (0, cursors.SLOTS - 1))
        if not self.edges <= {row.slot_from for row in rows}:
            if not self._cut():
                return False
            rows = self._rows("see_shape", (0, cursors.SLOTS - 1))
        self.unmerged = [slots for slots in self.unmerged if not self._merge(slots, rows)]
        return not self.unmerged

    def release(self) -> None:
        """Let the ranges that are held go on."""
        if self.renew_at:
            with contextlib.suppress(DatabaseError), transaction.atomic(using=self.using):
                self._fetch("release_ranges")
                self._fetch("wake_workers", channels=[self.channel])

    def _cut(self) -> bool:
        with transaction.atomic(using=self.using):
            rows = self._lock((0, cursors.SLOTS - 1))
            cuts = {row: self._edges_in(row) for row in rows if self._edges_in(row)}
            leased = [row for row in cuts if row.is_leased]
            for row in leased:
                self._hold([row], row.position)
            if leased:
                return False
            if cuts:
                self._record()
            for row, edges in cuts.items():
                for edge in reversed(edges):
                    self._fetch("split_range", id=row.id, slot=edge)
                    self._fetch("shorten_range", id=row.id, slot=edge)
                self._renew((row.slot_from, row.slot_to))
        return True

    def _edges_in(self, row: _Row) -> list[int]:
        return sorted(edge for edge in self.edges if row.slot_from < edge <= row.slot_to)

    def _merge(self, slots: tuple[int, int], seen: list[_Row]) -> bool:
        members = [row for row in seen if slots[0] <= row.slot_from <= slots[1]]
        if len(members) == 1:
            return True
        is_time = time.monotonic() >= self.renew_at.get(slots, 0)
        if not is_time and not all(row.has_arrived for row in members):
            return False
        self.renew_at[slots] = time.monotonic() + HOLD_SECONDS / 3
        with transaction.atomic(using=self.using):
            rows = self._lock(slots)
            if (rows[0].slot_from, rows[-1].slot_to) != slots:
                return False
            meeting_point = _meeting_point(rows)
            ids = [row.id for row in rows]
            self._record()
            [(are_on_the_way,)] = self._fetch("are_on_the_way", ids=ids, position=meeting_point)
            if are_on_the_way or any(row.is_leased for row in rows):
                is_hopeless = any(row.is_stuck and row.position < meeting_point for row in rows)
                self._hold(rows, None if is_hopeless else meeting_point)
                return False
            self._fetch("merge_ranges", ids=ids, position=meeting_point)
            self._fetch("drop_ranges", ids=ids[1:])
            self._renew(slots)
        return True

    def _hold(self, rows: list[_Row], position: int | None) -> None:
        ids = [row.id for row in rows]
        self._fetch("hold_ranges", ids=ids, position=position, seconds=HOLD_SECONDS)

    def _renew(self, slots: tuple[int, int]) -> None:
        """Give changed ranges a new generation, and wake the workers."""
        self._fetch("renew_ranges", first=slots[0], last=slots[1])
        self._fetch("wake_workers", channels=[self.channel])

    def _record(self) -> None:
        """Record the operator's action, in the transaction of its first change of the channel."""
        if self.reason is None:
            return
        new = {"to": self.to, "channel": self.channel}
        [(before,)] = self._fetch("count_ranges")
        action_log.record(
            "scale", self.group, using=self.using, old=before, new=new, reason=self.reason
        )
        self.reason = None

    def _lock(self, slots: tuple[int, int]) -> list[_Row]:
        self._fetch("lock_group_shape")
        return self._rows("lock_shape", slots)

    def _rows(self, name: str, slots: tuple[int, int]) -> list[_Row]:
        rows = self._fetch(name, first=slots[0], last=slots[1])
        return sorted((_Row(*row) for row in rows), key=lambda row: row.slot_from)

    def _fetch(self, name: str, **parameters: Any) -> list[tuple[Any, ...]]:
        parameters |= {"group": self.group, "channel": self.channel}
        with connections[self.using].cursor() as cursor:
            run_statement(cursor, name, parameters)
            return list(cursor.fetchall()) if cursor.description else []


def _meeting_point(rows: list[_Row]) -> int:
    """Return where ranges can become one.

    Not before the foremost, which a reset may have moved beyond what was handled. Not before their
    highest seen position when these differ: up to there the merged range could not show which of
    its messages are replayed.
    """
    foremost = max(row.position for row in rows)
    if len({row.max_position for row in rows}) > 1:
        return max(foremost, *(row.max_position for row in rows))
    return foremost
