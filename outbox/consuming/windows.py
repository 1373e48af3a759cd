"""Windows: neighbouring ranges of a group whose next messages are read together.

    formed -> claimed -> done: claimed further on -> at the horizon: its ranges are idle
                  |-> anything else: its ranges are claimed one by one

No range of a window has a message up to `after` that is not handled, so a range without messages
needs no write. A sixteenth of a group's ranges is a window, so that other workers find ranges.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from django.db import connections

from ..groups import ConsumerGroup
from ..message_log import LogState, Row
from ..sql import array, run_statement
from .cursors import Claim, decode_claim
from .idle_ranges import KnownRange

LEAST_RANGES = 32
"""Ranges with messages below which a group gains too little."""
WINDOWS = 16
"""Into how many windows the ranges of a group in a channel are divided, at least."""
MOST_RANGES = 64
"""Ranges of a window: a batch locks those that have messages."""
SPREAD = 10_000
"""Positions between the ranges of a window at most: those between are read for nothing."""

Place = tuple[str, str]
"""A group and one of its channels."""

_decode_head = msgspec.json.Decoder(tuple[int, list[int]]).decode


class Waiting(NamedTuple):
    """A range that may have messages."""

    range: KnownRange
    place: Place
    done: int
    """Up to which position nothing of the range is to do."""


@dataclasses.dataclass(slots=True)
class Window:
    """Neighbouring ranges of a group in a channel, and up to where they are done."""

    place: Place
    ranges: list[KnownRange]
    """In the order of their slots."""
    after: int

    def remove(self, known: KnownRange) -> Waiting:
        """Take a range out, to be claimed by itself."""
        self.ranges.remove(known)
        return Waiting(known, self.place, self.after)


@dataclasses.dataclass(frozen=True, slots=True)
class WindowClaim:
    """The locked ranges of a window and their next messages."""

    limit: int
    """Up to which position the batch may move the ranges."""
    claims: dict[int, Claim]
    """By the numbers of the ranges in the window, from 1 on."""
    rows: Sequence[Row]
    numbers: Sequence[int]
    """The number of the range of each row."""
    left_out: Sequence[KnownRange]
    """Ranges with messages that were not locked."""


class Windows:
    """The windows of one session, and which one is claimed."""

    def __init__(self, using: str) -> None:
        self.using = using
        self.waiting: dict[str, deque[Window]] = {}
        """By the names of their groups."""
        self._claimed: Window | None = None
        self._alone: set[int] = set()

    def drop(self) -> None:
        """Forget all; the ranges of the claimed one are claimed one by one next."""
        if self._claimed is not None:
            self._alone.update(each.id for each in self._claimed.ranges)
        self._claimed = None
        self.waiting.clear()

    def ranges(self) -> set[KnownRange]:
        """Return the ranges that are in a window."""
        windows = (window for queue in self.waiting.values() for window in queue)
        return {each for window in windows for each in window.ranges}

    def form(self, group: ConsumerGroup, queue: deque[Waiting]) -> deque[Waiting]:
        """Make windows where a group has many ranges in a channel; return the other ranges.

        A range far behind the others of its window is in none.
        """
        if group.delivery != "exactly_once" or group.savepoint_per_message:
            return queue
        plain = [each for each in queue if each.range.id not in self._alone]
        for place, count in Counter(each.place for each in plain).items():
            if count >= LEAST_RANGES:
                found = [each for each in plain if each.place == place]
                found.sort(key=lambda each: each.range.slot_from)
                size = min(MOST_RANGES, -(-count // WINDOWS))
                for start in range(0, count, size):
                    self.append(_window(found[start : start + size]))
        taken = self.ranges()
        return deque(each for each in queue if each.range not in taken)

    def claim(
        self, window: Window, state: LogState, most: int, most_bytes: int
    ) -> WindowClaim | None:
        """Lock the ranges of a window that have messages, and return both; None: another log."""
        parameters = {
            "channel": window.place[1],
            "horizon": state.horizons[window.place[1]],
            "log": state.log,
            "ids": array(each.id for each in window.ranges),
            "generations": array(each.generation for each in window.ranges),
            "first": array(each.slot_from for each in window.ranges),
            "last": array(each.slot_to for each in window.ranges),
            "after": window.after,
            "most": most,
            "most_bytes": most_bytes,
        }
        with connections[self.using].cursor() as cursor:
            run_statement(cursor, "claim_window", parameters)
            rows: list[tuple[Any, ...]] = cursor.fetchall()
        if not rows:
            return None
        limit, with_messages = _decode_head(rows[-1][7])
        claims = {row[6]: decode_claim(row[7]) for row in rows[:-1] if row[0] is None}
        messages = [
            row
            for row in rows[: -1 - len(claims)]
            if row[6] in claims and row[0] > claims[row[6]].position
        ]
        if messages:
            self._claimed = window
        return WindowClaim(
            limit,
            claims,
            [row[:6] for row in messages],
            [row[6] for row in messages],
            [window.ranges[each - 1] for each in with_messages if each not in claims],
        )

    def note_done(self, limit: int) -> bool:
        """Note that the messages of the claimed window are handled; False when none is claimed."""
        window, self._claimed = self._claimed, None
        if window is not None:
            window.after = limit
            self.append(window)
        return window is not None

    def append(self, window: Window) -> None:
        """Add a window behind the others of its group."""
        self.waiting.setdefault(window.place[0], deque()).append(window)

    def next_of(self, group: str) -> Window:
        """Take the next window of a group that has one."""
        window = self.waiting[group].popleft()
        if not self.waiting[group]:
            del self.waiting[group]
        return window

    def note_alone(self, cursor_id: int) -> None:
        """Note that a range was claimed by itself: it may share again."""
        self._alone.discard(cursor_id)


def _window(part: Sequence[Waiting]) -> Window:
    lowest = max(each.done for each in part) - SPREAD
    near = [each for each in part if each.done >= lowest]
    after = min(each.done for each in near)
    return Window(part[0].place, [each.range for each in near], after)
