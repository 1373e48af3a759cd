"""Forget a group, or one of its channels: its cursors and parked messages are deleted.

A group or a channel that left the code is shown as `undeclared` and holds retention back until it
is forgotten. The cursor rows are locked first, so a batch that is being handled ends before. A
group that code declares, or that has a worker, is refused unless that is forced.
"""

from __future__ import annotations

import dataclasses

from django.db import connections, transaction

from .. import groups as group_registry
from ..conf import log_alias
from ..consuming import cursor_rows
from ..consuming.cursor_rows import CursorRow, known_group
from ..exceptions import InvalidGroup
from ..groups import ConsumerGroup
from ..sql import one_row, run_statement
from . import action_log
from .sessions import worker_sessions


@dataclasses.dataclass(frozen=True, slots=True)
class Forgotten:
    """What a group had in one channel."""

    channel: str
    ranges: int
    """Cursors, one for each slot range."""
    position: int | None
    """The lowest position of its cursors; None when only parked messages are left."""
    parked: int
    """Parked messages."""


def forget(
    group: ConsumerGroup | str,
    *,
    channel: str | None = None,
    reason: str = "",
    execute: bool = True,
    force: bool = False,
    using: str | None = None,
) -> list[Forgotten]:
    """Delete the cursors and parked messages of a group, and return what there was by channel.

    `channel`: only in this one. `reason`: stored in the action log. `execute=False`: change
    nothing. `force`: also while code declares the group there or a worker serves it; its next
    worker then creates the cursors again, at the start that the group declares. Waits for the
    batches that are being handled.

    Raises UnknownGroup, and InvalidGroup for a channel in which the group has nothing and for a
    group that is in use.
    """
    using = log_alias(using)
    name = known_group(group, using)
    with transaction.atomic(using=using):
        rows = _rows(name, channel, using, lock=execute)
        parked = _parked(name, channel, using)
        channels = sorted({row.channel for row in rows} | set(parked))
        if channel is not None and not channels:
            raise InvalidGroup(f"Group {name!r} has no cursor in channel {channel!r}.")
        if execute and not force and (why := in_use(name, channels, using)):
            raise InvalidGroup(f"{why} Nothing was deleted; --force (force=True) does it anyway.")
        if execute and channels:
            with connections[using].cursor() as cursor:
                run_statement(cursor, "forget_cursors", {"ids": [row.id for row in rows]})
                parameters = {"group": name, "channels": channels}
                run_statement(cursor, "forget_parked_messages", parameters)
            old = [list(row[1:5]) for row in rows]
            action_log.record("forget", name, using=using, old=old, reason=reason)
    return [_forgotten(each, rows, parked.get(each, 0)) for each in channels]


def in_use(name: str, channels: list[str], using: str) -> str:
    """Return a sentence that says who uses a group in some channels; "" for a group of the past."""
    declared = next((each for each in group_registry.all_groups() if each.name == name), None)
    if declared is not None:
        if not (used := sorted(set(channels) & set(declared.channels))):
            return ""
        place = f" ({declared.declared_at})" if declared.declared_at else ""
        return (
            f"Group {name!r} is declared in {', '.join(used)}{place}, so its "
            f'next worker begins there again, at "{declared.start}": take it out of the code first.'
        )
    workers = [each.process for each in worker_sessions(using) if each.serves(name)]
    if not workers:
        return ""
    return (
        f"Group {name!r} has a worker ({', '.join(workers)}), perhaps of another release: stop it "
        "first."
    )


def _rows(name: str, channel: str | None, using: str, *, lock: bool) -> list[CursorRow]:
    chosen = None if channel is None else [channel]
    if not lock:
        return cursor_rows.read("see_cursors", name, chosen, using)
    for each in chosen or sorted({row.channel for row in cursor_rows.see(name, using)}):
        one_row("lock_group_shape", using, group=name, channel=each)
    return cursor_rows.read("lock_cursors", name, chosen, using)


def _parked(name: str, channel: str | None, using: str) -> dict[str, int]:
    with connections[using].cursor() as cursor:
        run_statement(cursor, "count_parked_by_channel", {"group": name, "channel": channel})
        return dict(cursor.fetchall())


def _forgotten(channel: str, rows: list[CursorRow], parked: int) -> Forgotten:
    positions = [row.position for row in rows if row.channel == channel]
    return Forgotten(channel, len(positions), min(positions, default=None), parked)
