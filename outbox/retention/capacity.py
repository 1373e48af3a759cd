"""Capacity: what each channel takes, how fast it grows, and when a disk allowance is used up.

Read from a sample of the log's blocks, so all figures of channels are estimates.
"""

from __future__ import annotations

import dataclasses
import re

from django.db import connections

from ..sql import run_statement
from . import rules, segments
from .rules import Rule

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", re.IGNORECASE)
_FACTORS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
SAMPLE = 8_000_000
"""Bytes of the log that are read, about; a smaller log is read whole."""
DAY = 86400.0
WINDOW = 7 * DAY
"""Seconds over which growth is averaged; less for a younger log."""
LEAST_AGE = 3600.0
"""Seconds that a log must have had messages for; growth is not forecast before."""


@dataclasses.dataclass(frozen=True, slots=True)
class ChannelCapacity:
    """What a channel takes; estimates."""

    channel: str
    rule: str
    messages: int
    bytes: int
    """With its part of the indexes."""
    bytes_per_day: float
    """Published; 0 while the log is too young."""
    removable: int | None
    """Bytes past the rule, of which closed segments go next; None for the rule "latest"."""
    limit: float | None
    """Bytes at which the rule holds the channel; None when it grows for ever, or up to its keys."""


@dataclasses.dataclass(frozen=True, slots=True)
class Capacity:
    """The size of the log and its growth."""

    bytes: int
    """With indexes."""
    is_young: bool
    """Whether the log has too few messages' time in it for a forecast."""
    channels: list[ChannelCapacity]
    """The largest first."""

    @property
    def bytes_per_day(self) -> float:
        """Bytes that are published in a day."""
        return sum(each.bytes_per_day for each in self.channels)

    def days_until(self, budget: int) -> float | None:
        """Return the days until the log takes `budget` bytes; None when the rules stop it before.

        A channel with a duration grows up to what is published in it; a channel kept `latest` is
        taken to grow on, which is the worst case.
        """
        at, size = 0.0, float(self.bytes)
        growing = [(self._days_to_limit(each), each.bytes_per_day) for each in self.channels]
        for end, _ in sorted(growing):
            rate = sum(per_day for until, per_day in growing if until > at)
            if size >= budget or (rate and size + rate * (end - at) >= budget):
                return at + max(0.0, budget - size) / rate if rate else at
            size, at = size + (rate * (end - at) if rate else 0.0), end
        return at if size >= budget else None

    @staticmethod
    def _days_to_limit(channel: ChannelCapacity) -> float:
        if not channel.bytes_per_day:
            return 0.0
        if channel.limit is None:
            return float("inf")
        return max(0.0, (channel.limit - channel.bytes) / channel.bytes_per_day)


def capacity(using: str) -> Capacity:
    """Return what the log and its channels take, and how fast they grow; reads a sample."""
    total = sum(each.bytes for each in segments.list_segments(using))
    percent = min(100.0, 100.0 * SAMPLE / max(total, 1))
    with connections[using].cursor() as cursor:
        run_statement(cursor, "sample_log", {"percent": percent})
        sample: list[tuple[str, float, int]] = cursor.fetchall()
        run_statement(cursor, "age_of_log")
        ((age,),) = cursor.fetchall()
    by_channel: dict[str, list[tuple[float, int]]] = {}
    for channel, seconds, size in sample:
        by_channel.setdefault(channel, []).append((seconds, size))
    factor = total / max(1, sum(size for _, _, size in sample))
    window, chosen = min(WINDOW, age), rules.current()
    found = [
        _channel(channel, chosen.of(channel), rows, factor, percent / 100, window)
        for channel, rows in by_channel.items()
    ]
    found.sort(key=lambda each: (-each.bytes, each.channel))
    return Capacity(total, age < LEAST_AGE, found)


def _channel(
    channel: str,
    rule: Rule,
    rows: list[tuple[float, int]],
    factor: float,
    part: float,
    window: float,
) -> ChannelCapacity:
    """`rows`: age in seconds and bytes of sampled messages; `factor`: bytes of the log per one."""
    recent = sum(size for seconds, size in rows if seconds <= window)
    per_day = factor * recent * DAY / window if window >= LEAST_AGE else 0.0
    removable: int | None = 0 if rule.kind != "latest" else None
    limit = None
    if rule.kind == "age" and rule.age is not None:
        kept_for = rule.age.total_seconds()
        removable = int(factor * sum(size for seconds, size in rows if seconds > kept_for))
        limit = per_day * kept_for / DAY
    size = int(factor * sum(size for _, size in rows))
    messages = round(len(rows) / part)
    return ChannelCapacity(channel, str(rule), messages, size, per_day, removable, limit)


def parse_size(text: str) -> int:
    """Return the bytes that a text such as "50GB" says; raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size like 50GB")
    return int(float(match[1]) * _FACTORS[match[2].upper()])
