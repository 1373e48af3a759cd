"""Removals: what the rules remove from each closed segment, and which groups hold that back."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator

from .. import message_log
from ..models import ArchivedSegment
from ..sql import all_rows, one_row, scalar
from . import archive, rules, segments
from .readers import Reader, readers, slowest
from .rules import Rule, Rules
from .segments import Segment

LEAST_REMOVABLE = 0.2
"""Part of a segment's messages that must have gone before the rule "latest" rewrites it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Hold:
    """A group that has not read messages which the rules would remove otherwise."""

    channel: str
    group: str
    """"(snapshot)" for a snapshot that is under way."""
    position: int
    """Up to where the group has read the channel."""
    since: datetime.datetime
    """When the oldest segment that it holds could have gone."""
    segments: int
    """How many segments it holds."""

    def __str__(self) -> str:
        return (
            f"{self.group} has read {self.channel} up to position {self.position} and holds "
            f"{self.segments} segment{'s' if self.segments > 1 else ''} since "
            f"{self.since.isoformat(timespec='seconds')}"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Removal:
    """What may be removed from a segment."""

    segment: Segment
    expired: list[str]
    """Channels of which all goes."""
    latest: list[str]
    """Channels of which goes what has a newer message of its key."""
    keyless: list[str]
    """Channels of which goes what has no key."""
    is_whole: bool
    """Whether nothing stays."""
    last_positions: dict[str, int]
    """Of these channels: their last message in the segment, which every group must have read."""
    horizon: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Part:
    """The messages of one channel in a closed segment, past their rule."""

    channel: str
    last: int
    is_latest: bool
    """Its rule keeps the newest message of each key."""
    is_keyless_due: bool
    """Whether its messages without a key may go; only where `is_latest`."""
    due_since: datetime.datetime
    holder: Reader | None


def removals(using: str, chosen: Rules) -> Iterator[Removal]:
    """Give the messages that may be removed, a closed segment at a time, the oldest first."""
    horizon = message_log.horizon(using)
    for segment, parts, channels in _due_parts(using, chosen, horizon):
        free = [part for part in parts if part.holder is None]
        expired = [part.channel for part in free if not part.is_latest]
        latest = [part.channel for part in free if part.is_latest]
        keyless = [part.channel for part in free if part.is_keyless_due]
        is_whole = len(expired) == channels
        last_of = {part.channel: part.last for part in free}
        removal = Removal(segment, expired, latest, keyless, is_whole, last_of, horizon)
        if expired or is_whole or _is_worth_it(removal, using):
            yield removal


def holds(using: str) -> list[Hold]:
    """Return which group holds retention back in each channel, by channel.

    Looks at the index of each closed segment; empty when no rule removes anything.
    """
    chosen = rules.current()
    if not chosen.remove_something:
        return []
    horizon = message_log.horizon(using)
    found: dict[str, Hold] = {}
    for _, parts, _ in _due_parts(using, chosen, horizon):
        for part in parts:
            if part.holder is not None:
                found[part.channel] = _longer(found.get(part.channel), part, part.holder)
    return [found[channel] for channel in sorted(found)]


def check_readers(removal: Removal, using: str) -> Reader | None:
    """Return a reader that a removal would take messages from, read now; None without one."""
    lowest = slowest(readers(using))
    for channel, last in removal.last_positions.items():
        reader = lowest.get(channel)
        if reader is not None and reader.position < last:
            return reader
    return None


def _longer(hold: Hold | None, part: _Part, reader: Reader) -> Hold:
    since, count = (hold.since, hold.segments) if hold else (part.due_since, 0)
    return Hold(part.channel, reader.group, reader.position, min(since, part.due_since), count + 1)


def _due_parts(
    using: str, chosen: Rules, horizon: int
) -> Iterator[tuple[Segment, list[_Part], int]]:
    """Give closed segments, the channels past their rule, and how many channels there are."""
    now = scalar("read_clock", using)
    lowest = slowest(readers(using))
    protected = {
        each.lower
        for each in ArchivedSegment.objects.using(using).filter(is_obsolete=False)
        if archive.is_protected(each)
    }
    for segment in segments.list_segments(using):
        is_closed = segment.upper is not None and segment.upper - 1 <= horizon
        if not is_closed or segment.lower is None or segment.lower in protected:
            continue
        rows = all_rows("segment_channels", using, lower=segment.lower)
        parts = [
            part
            for channel, _, last, last_at in rows
            if (part := _part(channel, last, last_at, chosen.of(channel), now, lowest.get(channel)))
            and not scalar("has_streams", using, channel=channel)
        ]
        yield segment, parts, len(rows)


def _part(
    channel: str,
    last: int,
    last_at: datetime.datetime,
    rule: Rule,
    now: datetime.datetime,
    reader: Reader | None,
) -> _Part | None:
    """Return the messages of a channel in a segment; None while its rule keeps them all."""
    is_latest = rule.kind == "latest"
    ends_at = None if rule.age is None else last_at + rule.age
    is_aged = ends_at is not None and ends_at < now
    if rule.kind == "forever" or not (is_latest or is_aged):
        return None
    due_since = last_at if is_latest or ends_at is None else ends_at
    holder = reader if reader is not None and reader.position < last else None
    return _Part(channel, last, is_latest, is_latest and is_aged, due_since, holder)


def _is_worth_it(removal: Removal, using: str) -> bool:
    if not removal.latest:
        return False
    counted = one_row(
        "count_removable",
        using,
        lower=removal.segment.lower,
        upper=removal.segment.upper,
        latest=removal.latest,
        keyless=removal.keyless,
        horizon=removal.horizon,
    )
    total, removable = counted or (0, 0)
    return bool(removable and removable >= LEAST_REMOVABLE * total)
