"""Prove from the log, the cursors and the parked messages that a group did its work exactly once.

Since the last reset, for each channel: the messages that the group's ranges moved past are as many
as those it processed, skipped or keeps parked. Everything is read in one snapshot, so the audit
holds while workers run. Where retention has removed messages since then, fewer of them are left to
count: only what was passed over shows. A split leaves the counters of a range on one of its halves,
and a merge adds them up; so a channel's sums are exact whatever happened to its ranges.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from django.db import connections

from ..conf import log_alias
from ..consuming.cursor_rows import known_group
from ..consuming.cursors import SLOTS
from ..groups import ConsumerGroup
from ..retention import rules
from ..sql import run_statement


@dataclasses.dataclass(frozen=True, slots=True)
class ChannelAudit:
    """What a group did in one channel since its last reset."""

    channel: str
    messages: int
    """Messages in the log that its ranges have moved past."""
    processed: int
    skipped: int
    parked: int
    is_trimmed: bool
    """Whether retention removes messages of the channel: there may be fewer than handled."""
    difference: int
    """Messages less processed, skipped and parked: above 0, the number that was never handled;
    below 0, the number handled more than once."""
    findings: list[str]
    """A sentence for each thing that is wrong; empty when the account is exact."""


@dataclasses.dataclass(frozen=True, slots=True)
class Audit:
    """The account of one group."""

    group: str
    passed: bool
    channels: list[ChannelAudit]


class _Range(NamedTuple):
    channel: str
    slot_from: int
    slot_to: int
    counted_from: int
    position: int
    processed: int
    skipped: int
    parked_counter: int
    parked_rows: int
    parked_since: int
    messages: int
    is_trimmed: bool


def audit(group: ConsumerGroup | str, using: str | None = None) -> Audit:
    """Return the account of a group since its last reset; raises UnknownGroup."""
    using = log_alias(using)
    name = known_group(group, using)
    with connections[using].cursor() as cursor:
        run_statement(cursor, "audit_ranges", {"group": name})
        ranges = [_Range(*row) for row in cursor.fetchall()]
    keeps = rules.current()
    by_channel = itertools.groupby(ranges, key=lambda each: each.channel)
    channels = [
        _account(channel, list(parts), keeps.of(channel).kind == "latest")
        for channel, parts in by_channel
    ]
    return Audit(name, not any(each.findings for each in channels), channels)


def _account(channel: str, ranges: Sequence[_Range], keeps_latest: bool) -> ChannelAudit:
    messages = sum(each.messages for each in ranges)
    processed = sum(each.processed for each in ranges)
    skipped = sum(each.skipped for each in ranges)
    parked = sum(each.parked_since for each in ranges)
    difference = messages - processed - skipped - parked
    is_trimmed = keeps_latest or any(each.is_trimmed for each in ranges)
    return ChannelAudit(
        channel=channel,
        messages=messages,
        processed=processed,
        skipped=skipped,
        parked=parked,
        is_trimmed=is_trimmed,
        difference=difference,
        findings=list(_findings(ranges, max(0, difference) if is_trimmed else difference)),
    )


def _findings(ranges: Sequence[_Range], difference: int) -> Iterator[str]:
    if difference > 0:
        yield f"{difference} passed over: neither processed nor skipped nor parked"
    elif difference < 0:
        yield f"{-difference} more processed, skipped or parked than there are messages"
    expected = 0
    for each in ranges:
        if each.slot_from > expected:
            yield f"no cursor covers the slots {expected} to {each.slot_from - 1}"
        elif each.slot_from < expected:
            yield f"two cursors cover the slots {each.slot_from} to {expected - 1}"
        expected = each.slot_to + 1
        if each.parked_counter != each.parked_rows:
            yield (
                f"the cursor of the slots {each.slot_from} to {each.slot_to} counts "
                f"{each.parked_counter} parked messages; there are {each.parked_rows}"
            )
    if expected < SLOTS:
        yield f"no cursor covers the slots {expected} to {SLOTS - 1}"
