"""Segments: the partitions of the log, each a range of positions; create them ahead.

A message whose segment is missing goes to the default segment, so that no publisher fails. What
lies there cannot be moved to a segment of its own without holding up the log: create ahead.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from django.db import OperationalError, connections, transaction

from .. import message_log
from ..exceptions import LogIsBusy
from ..sql import one_row, run_statement, scalar

DEFAULT_SIZE = 10_000_000
"""Positions in a segment, when there is no other whose size could be taken."""
LOCK_SECONDS = 2
"""How long publishers may be held up behind the lock that adding a segment takes."""

Use = Literal["full", "current", "ahead", "default"]


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """One partition of the log."""

    name: str
    lower: int | None
    """Its first position; None for the default segment."""
    upper: int | None
    """The first position after it; None for the default segment."""
    rows: int
    """An estimate, of the statistics."""
    bytes: int
    """With indexes."""
    guarded: bool
    """Whether its trigger refuses statements that name it instead of the log."""
    use: Use
    """Full (the positions are all drawn), current, ahead, or the default segment."""


def list_segments(using: str = "default") -> list[Segment]:
    """Return the segments in the order of their positions, the default one last."""
    head = message_log.last_position(using)
    with connections[using].cursor() as cursor:
        run_statement(cursor, "see_segments")
        return [Segment(*(*row, _use(row[1], row[2], head))) for row in cursor.fetchall()]


def count_ahead(segments: list[Segment]) -> int:
    """Return how many segments are not begun yet."""
    return sum(segment.use == "ahead" for segment in segments)


def has_strays(using: str = "default") -> bool:
    """Tell whether the default segment holds messages."""
    return bool(scalar("has_strays", using))


def create_ahead(count: int, using: str = "default") -> list[Segment]:
    """Add segments until `count` are ahead of the head, and return the new ones.

    Adding one locks the log for a moment; it is not waited for longer than `LOCK_SECONDS`.
    Raises LogIsBusy.
    """
    present = list_segments(using)
    head = message_log.last_position(using)
    lower, size = _after(present, head)
    for number in range(count - count_ahead(present)):
        _create(lower + number * size, lower + (number + 1) * size, using)
    known = {each.name for each in present}
    return [each for each in list_segments(using) if each.name not in known]


def _after(present: list[Segment], head: int) -> tuple[int, int]:
    """Return where the next segment begins and its size; what the default one holds stays there."""
    bounds = [(each.lower, each.upper) for each in present if each.lower and each.upper]
    lower, upper = bounds[-1] if bounds else (1, DEFAULT_SIZE)
    size = max(upper - lower, 1)
    return (upper if upper > head else (head // size + 1) * size), size


def _create(lower: int, upper: int, using: str) -> None:
    try:
        with transaction.atomic(using=using):
            one_row("limit_lock_wait", using, timeout=f"{LOCK_SECONDS}s")
            one_row("create_segment", using, lower=lower, upper=upper)
    except OperationalError as error:
        raise LogIsBusy(seconds=LOCK_SECONDS) from error


def _use(lower: int | None, upper: int | None, head: int) -> Use:
    if lower is None or upper is None:
        return "default"
    if lower > head + 1:
        return "ahead"
    return "full" if upper - 1 <= head else "current"
