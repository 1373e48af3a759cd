"""The cursor rows of a group as operators see them, and held for a change from outside.

A change of a group from outside locks its rows until commit: it waits for the batches in progress,
and no batch can straddle the change. The shape of the group is locked first, so that a split or
merge at the same time cannot slip by.
"""

from __future__ import annotations

from collections.abc import Iterable

from .. import groups as group_registry
from ..consuming import cursors
from ..consuming.cursor_rows import CursorRow, known_group, read, see
from ..exceptions import UnknownChannel, UnknownGroup, did_you_mean
from ..groups import ConsumerGroup
from ..sql import one_row


def rows_of(
    group: ConsumerGroup | str, channels: Iterable[str] | None, using: str, *, lock: bool = True
) -> list[CursorRow]:
    """Return the cursors of a group, locked until commit unless `lock=False`.

    Creates those that a declared group lacks. `channels`: only these. Raises UnknownGroup, and
    UnknownChannel for a channel in which the group has no cursor.
    """
    name = known_group(group, using)
    rows = see(name, using)
    declared = _declared(group)
    if declared is not None and not set(declared.channels) <= {row.channel for row in rows}:
        cursors.register([declared], using)
        rows = see(name, using)
    present = {row.channel for row in rows}
    wanted = list(channels) if channels is not None else None
    if unknown := sorted(set(wanted or ()) - present):
        raise UnknownChannel(
            f"Group {name!r} has no cursor in channel {unknown[0]!r}."
            f"{did_you_mean(unknown[0], present)} Its channels: {', '.join(sorted(present))}.",
            channel=unknown[0],
        )
    if not lock:
        return [row for row in rows if wanted is None or row.channel in wanted]
    for channel in sorted(wanted or present):
        one_row("lock_group_shape", using, group=name, channel=channel)
    return read("lock_cursors", name, wanted, using)


def _declared(group: ConsumerGroup | str) -> ConsumerGroup | None:
    if isinstance(group, ConsumerGroup):
        return group
    try:
        return group_registry.get(group)
    except UnknownGroup:
        return None
