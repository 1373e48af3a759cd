"""Claims: the next range of a worker with its messages, and what its session knows of the log.

    queue of ranges -> claimed
    queue is empty -> horizons read, ranges looked at -> claimed, the others in the queue
    many ranges of a group are in the queue -> in windows -> several claimed together

One statement does all of it. The horizons count until the queue is empty, or a second; ranges
without a message are idle, and are looked at again only where their channel has news.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from django.db import connections

from .. import message_log
from ..conf import settings
from ..groups import ConsumerGroup
from ..message_log import LogState
from ..sql import array, run_statement
from . import cursors
from .cursors import Claim
from .idle_ranges import IdleRanges, KnownRange
from .windows import Place, Waiting, WindowClaim, Windows

SCAN_PART = 0.05
"""The part of its time that a worker looks at all ranges, when there are more than a few."""
FEW = 8
"""Ranges that are all looked at each time."""
QUEUE_SECONDS = 1.0
"""Seconds after which the horizons are read again although the queue is not empty."""
QUEUE_PART = 32
"""Ranges of the queue that one claim tries."""
_NONE_IDLE = IdleRanges()


class _State(msgspec.Struct):
    log: str
    last_position: int
    horizons: list[int] | None
    """In the order of the channels that were asked for; None when none is held back."""
    woken: list[int] | None
    """The idle ranges that have news; None when another transaction has to look at the ranges."""


class _Idle(msgspec.Struct):
    range: KnownRange
    horizon: int


_decode_state = msgspec.json.Decoder(_State).decode
_decode_idle = msgspec.json.Decoder(_Idle).decode
_decode_queue = msgspec.json.Decoder(
    tuple[list[int], list[int], list[tuple[int, int, int, int]]]
).decode


class Claims:
    """Claims ranges for one session.

    `count_own_floor`: see `message_log.horizon`.
    """

    def __init__(self, using: str, *, count_own_floor: bool = True) -> None:
        self.using = using
        self.count_own_floor = count_own_floor
        self.windows = Windows(using)
        self.forget()

    def forget(self) -> None:
        """Forget all that the session knows: a crash may take the sequence back."""
        self.state = message_log.NOTHING_KNOWN
        self.idle = IdleRanges()
        self.log_was_emptied = self.is_incomplete = False
        """Whether the last claim has only read the log: ask again, in another transaction."""
        self._advanced_at = 0
        self._tried: list[Waiting] = []
        self._places: list[Place] = []
        """Groups and channels of the last claim: what its numbers stand for, from 1 on."""
        self.drop_queue()

    @property
    def has_more(self) -> bool:
        """Whether to claim again at once, in another transaction, when nothing was found."""
        return self.is_incomplete or bool(self._queue) or bool(self.windows.waiting)

    def drop_queue(self) -> None:
        """Read the horizons and look at all ranges for the next claim."""
        self.windows.drop()
        self._queue: dict[str, deque[Waiting]] = {}
        self._had_window: set[str] = set()
        self._scan_at = self._drop_at = 0.0

    def claim(
        self,
        groups: Sequence[ConsumerGroup],
        most: int,
        most_bytes: int | None = None,
        end_position: int | None = None,
    ) -> tuple[Claim, list[message_log.Row]] | None:
        """Lock a range that has something to do; return it and its next messages.

        The groups take turns, and in each the ranges; skips locked, paused and leased ones, and
        those that wait for a retry. Must run inside a transaction, which keeps the lock.

        `most`: messages to read at most; none when the claim only moves over a gap. `most_bytes`:
        of JSON in them, unless the first one alone is larger; the setting `BATCH_BYTES` when left
        out. `end_position`: nothing above it. The claim's `limit` is where the batch ends. Returns
        None when no range has anything to do, or when `is_incomplete`.
        """
        size = settings().batch_bytes if most_bytes is None else most_bytes
        began = time.monotonic()
        if began >= self._drop_at and self._queue:
            self._queue.clear()
            self._scan_at = 0.0  # else what was in it is not found before the next look at all
        is_scan = began >= self._scan_at or len(self.idle) <= FEW
        rows = self._ask(groups, most, size, end_position, is_scan)
        found, news, without_messages = None, False, []
        for index, (image, kind) in enumerate(row[6:] for row in rows):
            if kind == "state":
                news = self._take_state(_decode_state(image))
                self._drop_at = began + QUEUE_SECONDS
                if is_scan:
                    self._scan_at = (now := time.monotonic()) + (now - began) / SCAN_PART
            elif kind == "idle":
                without_messages.append(_decode_idle(image))
            else:  # a claim, its further messages, and the queue
                if rows[-1][7] == "queue":
                    self._fill_queue(groups, *_decode_queue(rows.pop()[6]))
                first = index + (rows[index][0] is None)
                found = cursors.decode_claim(image), [each[:6] for each in rows[first:]]
                break
        self._note_idle(without_messages)
        if found is not None:
            self._keep_place(found[0])
        elif news:
            self.is_incomplete = True
        return found

    def claim_window(
        self, groups: Sequence[ConsumerGroup], most: int, most_bytes: int
    ) -> WindowClaim | None:
        """Lock several ranges of the group whose turn it is, and read their next messages.

        Only where it has many with messages, in turn with its other ranges. None: `claim` is next.
        """
        waiting = self.windows.waiting
        while waiting and not self.is_incomplete and time.monotonic() < self._drop_at:
            group = next(g.name for g in groups if g.name in self._queue or g.name in waiting)
            if group not in waiting or (group in self._queue and group in self._had_window):
                self._had_window.discard(group)
                return None
            window = self.windows.next_of(group)
            if window.after >= self.state.horizons[window.place[1]]:
                for known in window.ranges:
                    self.idle.add(known, window.after)
                continue
            found = self.windows.claim(window, self.state, most, most_bytes)
            if found is None:
                self.drop_queue()
                return None
            for known in found.left_out:
                self._append(window.remove(known))
            if found.rows:
                self._had_window.add(group)
                return found
            window.after = found.limit
            self.windows.append(window)
        return None

    def note_done(self, claim: Claim) -> None:
        """Note that all messages of a claim are handled: its range may be idle now."""
        if not self.windows.note_done(claim.limit) and len(self.idle) >= FEW:
            self.idle.add(_range_of(claim), claim.limit)

    def _note_idle(self, without_messages: Iterable[_Idle]) -> None:
        """Note ranges without a message, after the horizons that the same statement has read.

        A range of the queue has none up to the horizons before these: it is looked at again.
        """
        for each in without_messages:
            if each.horizon != self.state.horizons.get(each.range.channel):
                self._scan_at = 0.0
            self.idle.add(each.range, each.horizon)

    def advance_idle(self) -> None:
        """Move idle ranges that lag far behind to their horizons, in passing."""
        position = self.state.last_position
        if self.idle and position - self._advanced_at > cursors.IDLE_GAP:
            cursors.advance_idle(self.idle, self.using)
            self._advanced_at = position

    def _ask(
        self,
        groups: Sequence[ConsumerGroup],
        most: int,
        size: int,
        end_position: int | None,
        is_scan: bool,
    ) -> list[tuple[Any, ...]]:
        """Run the statement, which is described at outbox_claim_v1."""
        self._tried = self._next_in_queue(groups)
        looks_further = not self._queue
        if looks_further:
            self._places, idle = cursors.places(groups), self.idle
        else:  # the many groups of a worker would be sent once for each of them
            self._places, idle = [each.place for each in self._tried], _NONE_IDLE
        numbers = {place: number for number, place in enumerate(self._places, 1)}
        parameters: dict[str, Any] = {
            **cursors.pairs(self._places, self.state),
            **idle.parameters([channel for _, channel in self._places]),
            "log": self.state.log,
            "last_position": self.state.last_position,
            "end_position": end_position,
            "without_own": not self.count_own_floor,
            "reads_log": looks_further and not self.is_incomplete,
            "is_scan": looks_further and (is_scan or self.is_incomplete),
            "queue_ids": array(each.range.id for each in self._tried),
            "queue_numbers": array(numbers[each.place] for each in self._tried),
            "most": most,
            "most_bytes": size,
        }
        self.is_incomplete = False
        with connections[self.using].cursor() as cursor:
            run_statement(cursor, "claim_batch", parameters)
            rows: list[tuple[Any, ...]] = cursor.fetchall()
        return rows

    def _take_state(self, seen: _State) -> bool:
        """Read the state of the log; return whether an idle range has new messages."""
        channels = [channel for _, channel in self._places]
        horizons = seen.horizons or [seen.last_position] * len(channels)
        known, self._tried = self.state, []
        self.state = LogState(
            seen.log, seen.last_position, dict(zip(channels, horizons, strict=True))
        )
        if seen.woken is None:
            self.is_incomplete = True
            self.log_was_emptied = known.log != "" and (
                seen.log != known.log or seen.last_position < known.last_position
            )
            self.idle.clear()
            self.windows.drop()
        self.idle.move(self.state.horizons, seen.woken or (), seen.log)
        return bool(seen.woken)

    def _next_in_queue(self, groups: Sequence[ConsumerGroup]) -> list[Waiting]:
        """Take the next ranges out of the queue, of each group in turn."""
        taken: list[Waiting] = []
        while self._queue and len(taken) < QUEUE_PART:
            for group in groups:
                if len(taken) == QUEUE_PART:
                    break
                if waiting := self._queue.get(group.name):
                    taken.append(waiting.popleft())
                if not waiting:
                    self._queue.pop(group.name, None)
        return taken

    def _fill_queue(
        self,
        groups: Sequence[ConsumerGroup],
        ids: list[int],
        numbers: list[int],
        ranges: list[tuple[int, int, int, int]],
    ) -> None:
        """Add ranges to the queue, or to windows; an unchanged range of a window stays there."""
        in_windows = self.windows.ranges()
        for cursor_id, number, (generation, first, last, done) in zip(
            ids, numbers, ranges, strict=True
        ):
            place = self._places[number - 1]
            known = KnownRange(cursor_id, generation, place[1], first, last)
            if known not in in_windows:
                self._append(Waiting(known, place, done))
        for group in groups:
            if rest := self.windows.form(group, self._queue.pop(group.name, deque())):
                self._queue[group.name] = rest

    def _append(self, waiting: Waiting) -> None:
        self._queue.setdefault(waiting.place[0], deque()).append(waiting)

    def _keep_place(self, claim: Claim) -> None:
        """Put back into the queue what was not tried, and the claimed range if it has more."""
        self.windows.note_alone(claim.id)
        ids = [each.range.id for each in self._tried]
        rest = self._tried[ids.index(claim.id) + 1 :] if claim.id in ids else []
        for each in reversed(rest):
            self._queue.setdefault(each.place[0], deque()).appendleft(each)
        if claim.limit < self.state.horizons.get(claim.channel, 0):
            self._append(Waiting(_range_of(claim), (claim.group, claim.channel), claim.limit))


def _range_of(claim: Claim) -> KnownRange:
    return KnownRange(claim.id, claim.generation, claim.channel, *claim.slots)
