"""Move the cursors of a group to another position, while workers run.

A reset locks every cursor row of the group that it moves, so it waits for the current batches
and no batch can straddle it. The next message handled is the first above the new position.
"""

from __future__ import annotations

import csv
import dataclasses
import datetime
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from django.db import connections, transaction

from .. import message_log
from ..conf import log_alias
from ..consuming.cursor_rows import CursorRow, known_group
from ..exceptions import InvalidReset, InvalidSkip
from ..groups import ConsumerGroup
from ..sql import all_rows, array, one_row, run_statement, scalar
from . import action_log, cursor_locks
from .reset_targets import RangePosition, ResetTargets, Target

EVERYTHING = 2**62
"""More messages than a log can have."""
COLUMNS = ["channel", "slot_from", "slot_to", "position"]
"""The columns of the file that `export` writes and `read_file` reads."""


@dataclasses.dataclass(frozen=True, slots=True)
class CursorMove:
    """One cursor, from where to where."""

    channel: str
    slot_from: int
    slot_to: int
    old: int
    new: int
    delta: int
    """By how many positions the cursor moves; negative is back."""
    messages: int
    """How many messages will be handled again; when moved forward, how many will not be."""
    clamped: bool
    """Whether the position asked for lies outside the log, so that `new` is another one."""
    is_lower_bound: bool = False
    """Whether there may be more messages than were counted."""


def reset(
    group: ConsumerGroup | str,
    *,
    position: int | None = None,
    to_earliest: bool = False,
    to_latest: bool = False,
    shift_by: int | None = None,
    to_time: datetime.datetime | None = None,
    by_duration: datetime.timedelta | None = None,
    to_group: ConsumerGroup | str | None = None,
    places: Sequence[RangePosition] | None = None,
    channels: Iterable[str] | None = None,
    using: str | None = None,
    execute: bool = True,
    reason: str = "",
    most: int = EVERYTHING,
) -> list[CursorMove]:
    """Move the group's cursors and return the moves; exactly one of the first eight says where.

    `position`: just after it; 0 is before everything. `to_earliest`: before the first message
    that the log still has. `to_latest`: to the horizon. `shift_by`: by so many positions.
    `to_time`: before the first message published at that time (with a zone) or later.
    `by_duration`: the same, so long before now. `to_group`: where another group stands.
    `places`: as `read_file` returns them. `channels`: only these. `most`: messages looked at to
    count, in all. `execute=False`: change nothing. Raises InvalidReset and UnknownGroup.
    """
    using = log_alias(using)
    with transaction.atomic(using=using):
        one_row("hold_off_removal", using)
        target = (targets := ResetTargets(using)).resolve(
            position=position,
            to_earliest=to_earliest or None,
            to_latest=to_latest or None,
            shift_by=shift_by,
            to_time=to_time,
            by_duration=by_duration,
            to_group=to_group,
            places=places,
        )
        rows = cursor_locks.rows_of(group, channels, using, lock=execute)
        moves = _plan(rows, target, targets, most, using)
        if execute:
            _execute(known_group(group, using), rows, moves, reason, using)
        transaction.set_rollback(not execute, using)
    return moves


def skip(
    group: ConsumerGroup | str,
    position: int,
    *,
    reason: str,
    using: str | None = None,
    execute: bool = True,
) -> CursorRow:
    """Move the range of a message past it, unhandled; return the cursor as it was.

    Only the next message of its range can be skipped. `execute=False`: change nothing. Raises
    InvalidSkip and UnknownGroup.
    """
    using = log_alias(using)
    name = known_group(group, using)
    horizon = message_log.horizon(using)
    with transaction.atomic(using=using):
        rows = cursor_locks.rows_of(group, None, using, lock=execute)
        message = one_row("see_message", using, position=position)
        if message is None:
            raise InvalidSkip(f"There is no message at position {position}.")
        channel, slot, key, type_name = message
        row = _range_of(rows, channel, slot)
        if row is None:
            raise InvalidSkip(f"Group {name!r} does not read channel {channel!r}.")
        _check_is_next(row, position, horizon, using)
        if not execute:
            transaction.set_rollback(True, using)
            return row
        one_row("skip_message", using, id=row.id, position=position)
        one_row("wake_workers", using, channels=[channel])
        what = {"channel": channel, "position": position, "key": key, "type": type_name}
        action_log.record("skip", name, using=using, old=row.position, new=what, reason=reason)
    return row


def _range_of(rows: Iterable[CursorRow], channel: str, slot: int) -> CursorRow | None:
    for row in rows:
        if row.channel == channel and row.slot_from <= slot <= row.slot_to:
            return row
    return None


def _check_is_next(row: CursorRow, position: int, horizon: int, using: str) -> None:
    if position <= row.position:
        raise InvalidSkip(f"Position {position} is behind the range, which is at {row.position}.")
    following = scalar(
        "next_pending",
        using,
        channel=row.channel,
        after=row.position,
        until=min(position, horizon),
        slot_from=row.slot_from,
        slot_to=row.slot_to,
    )
    if following is None:
        raise InvalidSkip(f"Position {position} lies above the horizon, {horizon}: wait for it.")
    if following != position:
        raise InvalidSkip(f"Position {position} is not next: the range has to handle {following}.")


def export(moves: Iterable[CursorMove], path: Path | str) -> None:
    """Write the new positions of moves to a CSV file that `read_file` reads."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows([move.channel, move.slot_from, move.slot_to, move.new] for move in moves)


def read_file(path: Path | str) -> list[RangePosition]:
    """Read the positions that `export` wrote; raises InvalidReset when the file is another one."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    try:
        if rows[0] != COLUMNS:
            raise ValueError(f"its first line is not {','.join(COLUMNS)}")
        return [RangePosition(row[0], int(row[1]), int(row[2]), int(row[3])) for row in rows[1:]]
    except (ValueError, IndexError) as error:
        raise InvalidReset(f"{path} holds no positions: {error}.") from None


def _plan(
    rows: Sequence[CursorRow], target: Target, targets: ResetTargets, most: int, using: str
) -> list[CursorMove]:
    wanted = [target(row) for row in rows]
    new = [targets.clamp(place, row.channel) for place, row in zip(wanted, rows, strict=True)]
    counts = _counts_between(rows, new, most, using)
    return [
        CursorMove(
            channel=row.channel,
            slot_from=row.slot_from,
            slot_to=row.slot_to,
            old=row.position,
            new=to,
            delta=to - row.position,
            messages=count,
            clamped=to != asked,
            is_lower_bound=is_lower_bound,
        )
        for row, to, asked, (count, is_lower_bound) in zip(rows, new, wanted, counts, strict=True)
    ]


def _counts_between(
    rows: Sequence[CursorRow], new: Sequence[int], most: int, using: str
) -> list[tuple[int, bool]]:
    """Return the messages of each range between its place and its new one, and whether there may be
    more of them."""
    found = all_rows(
        "count_moves",
        using,
        channels=array(row.channel for row in rows),
        first_slots=array(row.slot_from for row in rows),
        last_slots=array(row.slot_to for row in rows),
        starts=array(min(row.position, to) for row, to in zip(rows, new, strict=True)),
        ends=array(max(row.position, to) for row, to in zip(rows, new, strict=True)),
        most=most // max(1, len(rows)),
    )
    return [(count, is_lower_bound) for count, is_lower_bound in found]


def _execute(
    name: str, rows: Sequence[CursorRow], moves: Sequence[CursorMove], reason: str, using: str
) -> None:
    with connections[using].cursor() as cursor:
        for row, move in zip(rows, moves, strict=True):
            place: dict[str, Any] = {
                "group": name,
                "channel": row.channel,
                "slot_from": row.slot_from,
                "slot_to": row.slot_to,
                "position": move.new,
                "id": row.id,
            }
            run_statement(cursor, "forget_parked", place)
            run_statement(cursor, "move_cursor", place)
        run_statement(cursor, "wake_workers", {"channels": sorted({r.channel for r in rows})})
    action_log.record(
        "reset",
        name,
        using=using,
        old=[list(row[1:5]) for row in rows],
        new=[[move.channel, move.slot_from, move.slot_to, move.new] for move in moves],
        reason=reason,
    )
