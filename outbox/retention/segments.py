"""Segments: the partitions of the log, each a range of positions; create them ahead.

A message whose segment is missing goes to the default segment, so that no publisher fails;
`maintenance` makes a segment of what lies there.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from django.db import connections, transaction

from .. import message_log
from ..conf import log_alias
from ..sql import one_row, run_statement, scalar
from . import log_lock

DEFAULT_SIZE = 10_000_000
"""Positions in a segment, when there is no other whose size could be taken."""

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
    """Full (all positions are allocated), current, ahead, or the default segment."""


def list_segments(using: str | None = None) -> list[Segment]:
    """Return the segments in the order of their positions, the default one last."""
    using = log_alias(using)
    head = message_log.last_position(using)
    with connections[using].cursor() as cursor:
        run_statement(cursor, "see_segments")
        return [Segment(*(*row, _use(row[1], row[2], head))) for row in cursor.fetchall()]


def count_ahead(segments: list[Segment]) -> int:
    """Return how many segments are not begun yet."""
    return sum(segment.use == "ahead" for segment in segments)


def default_has_rows(using: str | None = None) -> bool:
    """Return whether the default segment holds messages."""
    using = log_alias(using)
    may_read, has_pages = one_row("see_default_segment", using) or (True, False)
    return bool(has_pages and (not may_read or scalar("default_has_rows", using)))


def create_ahead(
    count: int,
    using: str | None = None,
    size: int | None = None,
    give_up: float | None = None,
) -> list[Segment]:
    """Add segments until `count` are ahead of the head, and return the new ones.

    `size`: positions in each; as in the last segment when left out. A table is made beside the
    log and attached, which publishers do not wait for. `give_up`: seconds to wait for a moment in
    which no transaction holds the log; see `log_lock`. Raises LogIsBusy.
    """
    using = log_alias(using)
    present = list_segments(using)
    head = message_log.last_position(using)
    lower, last_size = _after(present, head)
    size = size or last_size
    for number in range(count - count_ahead(present)):
        _create(lower + number * size, lower + (number + 1) * size, using, give_up)
    known = {each.name for each in present}
    return [each for each in list_segments(using) if each.name not in known]


def name_of(lower: int) -> str:
    """Return the table of the segment that begins at a position."""
    return f"outbox_message_{lower}"


def make_table(name: str, using: str) -> None:
    """Make an empty table like a segment, not attached to the log."""
    one_row("make_table", using, name=name)


def prepare(name: str, lower: int, upper: int, using: str) -> None:
    """Make a table that is not attached ready to be attached without a scan."""
    one_row("promise_range", using, name=name, lower=lower, upper=upper)
    one_row("validate_range", using, name=name)
    one_row("guard_segment", using, name=name)


def _after(present: list[Segment], head: int) -> tuple[int, int]:
    """Return where the next segment begins and its size; what the default one holds stays there."""
    bounds = [(each.lower, each.upper) for each in present if each.lower and each.upper]
    lower, upper = bounds[-1] if bounds else (1, DEFAULT_SIZE)
    size = max(upper - lower, 1)
    return (upper if upper > head else (head // size + 1) * size), size


def _create(lower: int, upper: int, using: str, give_up: float | None = None) -> None:
    name = name_of(lower)
    with transaction.atomic(using=using):
        make_table(name, using)
        prepare(name, lower, upper, using)

    def attach() -> None:
        one_row("attach_segment", using, name=name, lower=lower, upper=upper)

    log_lock.run(attach, using, exclusive=False, give_up=give_up)


def _use(lower: int | None, upper: int | None, head: int) -> Use:
    if lower is None or upper is None:
        return "default"
    if lower > head + 1:
        return "ahead"
    return "full" if upper - 1 <= head else "current"
