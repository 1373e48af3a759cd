"""Readers: how far the groups have read each channel, and which of them holds retention back.

Nothing is removed that a declared group, or a group with a cursor, has not read.
"""

from __future__ import annotations

import dataclasses

from django.db import connections

from .. import groups as group_registry
from ..sql import run_statement


@dataclasses.dataclass(frozen=True, slots=True)
class Reader:
    """A group that has not read a channel beyond `position`."""

    channel: str
    group: str
    position: int
    """0 for a declared group that has not begun, and for a snapshot that is under way."""


def readers(using: str) -> list[Reader]:
    """Return where each group stands in each channel, at the lowest of its ranges."""
    with connections[using].cursor() as cursor:
        run_statement(cursor, "readers_of_channels")
        found = [Reader(channel, group, position) for channel, group, position in cursor.fetchall()]
        run_statement(cursor, "open_snapshots")
        found += [Reader(channel, "(snapshot)", 0) for (channel,) in cursor.fetchall()]
    known = {(each.group, each.channel) for each in found}
    for group in group_registry.all_groups():
        if group.start == "earliest":
            found += [
                Reader(channel, group.name, 0)
                for channel in group.channels
                if (group.name, channel) not in known
            ]
    return found


def slowest(found: list[Reader]) -> dict[str, Reader]:
    """Return the reader of each channel that holds it back the most."""
    lowest: dict[str, Reader] = {}
    for each in found:
        if each.channel not in lowest or each.position < lowest[each.channel].position:
            lowest[each.channel] = each
    return lowest
