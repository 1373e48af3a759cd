"""Maintenance: make segments ahead, empty the default one, remove what the rules allow.

    closed segment -> nothing to remove | archived -> rewritten beside the log, swapped in | dropped

One at a time per log. Each step is a transaction of its own, and each can be killed: what it left
behind is found and done again by the next maintenance.
"""

from __future__ import annotations

import dataclasses
import logging
import random
import time

from .. import message_log
from ..conf import settings
from ..exceptions import OutboxError, ReaderCameBack, RightsMissing
from ..models import ArchivedSegment
from ..sql import one_row, scalar
from . import archive, log_lock, rules, segments
from .removals import Hold, Removal, check_readers, holds, removals
from .segments import Segment

logger = logging.getLogger("outbox.retention")

AHEAD = 2
"""Segments to keep ahead of the head, empty."""
MOST_SEGMENTS = 32
"""Segments grow with the log, so that about this many hold messages at most."""
SECONDS_BETWEEN = 60.0
"""Between two maintenances of one worker, at most."""
GIVE_UP_IN_PASSING = 2.0
"""Seconds for which a worker waits for the log's lock."""


@dataclasses.dataclass(slots=True)
class Done:
    """What a maintenance did."""

    created: list[str] = dataclasses.field(default_factory=list)
    promoted: list[str] = dataclasses.field(default_factory=list)
    """Segments that were made of what lay in the default one."""
    compacted: list[str] = dataclasses.field(default_factory=list)
    dropped: list[str] = dataclasses.field(default_factory=list)
    archived: list[str] = dataclasses.field(default_factory=list)
    """Names of files."""
    held: list[Hold] = dataclasses.field(default_factory=list)
    """The groups that have not read what could go otherwise."""
    is_busy: bool = False
    """Whether another maintenance was at work, so that this one did nothing."""


def maintain(using: str, *, ahead: int = AHEAD, give_up: float | None = None) -> Done:
    """Do what is due, and return what was done.

    `ahead`: empty segments to keep ahead. `give_up`: seconds to wait for a moment in which no
    transaction holds the log; see `log_lock`. What fails is kept for `groups` and `doctor`.
    Raises LogIsBusy, InvalidRule, ArchiveBroken, RightsMissing.
    """
    done = Done()
    with log_lock.alone(using) as is_alone:
        if not is_alone:
            done.is_busy = True
            return done
        try:
            _maintain(using, ahead, give_up, done)
        except RightsMissing:
            raise  # of this role; another one may maintain the log
        except (OutboxError, OSError, ValueError) as error:
            one_row("note_maintenance", using, error=f"{type(error).__name__}: {error}")
            raise
        one_row("note_maintenance", using, error="")
    return done


def _maintain(using: str, ahead: int, give_up: float | None, done: Done) -> None:
    promote_default(using, done, give_up)
    size = next_size(segments.list_segments(using))
    done.created = [each.name for each in segments.create_ahead(ahead, using, size, give_up)]
    archive.delete_obsolete(using)
    chosen = rules.current()
    if chosen.remove_something:
        for removal in removals(using, chosen):
            remove(removal, using, done, give_up)
        done.held = holds(using)


class InPassing:
    """Maintenance by workers: now and then, between two batches."""

    def __init__(self, using: str) -> None:
        self.using = using
        self._due_at = time.monotonic() + random.uniform(0.5, 1) * SECONDS_BETWEEN

    def turn(self) -> None:
        """Maintain the log if that is due; log an error and try again later."""
        if time.monotonic() < self._due_at:
            return
        self._due_at = time.monotonic() + random.uniform(0.5, 1) * SECONDS_BETWEEN
        try:
            maintain(self.using, give_up=GIVE_UP_IN_PASSING)
        except RightsMissing as error:
            logger.warning(
                "maintenance of the log needs the role that owns it (%s): run "
                "`manage.py outbox segments --maintain` as that role",
                error.reason,
            )
            self._due_at = float("inf")
        except (OutboxError, OSError, ValueError) as error:
            logger.warning("maintenance of the log failed: %s", error)


def promote_default(using: str, done: Done, give_up: float | None = None) -> None:
    """Make a segment of what lies in the default one; no row is copied.

    The range is promised by a constraint that is validated while publishers go on. It reaches far
    beyond the head, so that no publisher meets its end before the segment is attached.
    """
    lowest, highest = one_row("bounds_of_default", using) or (None, None)
    promised = one_row("see_promise", using)
    if lowest is None:
        if promised is not None:
            log_lock.run(lambda: _drop_promise(using), using, exclusive=False, give_up=give_up)
        return
    lower, upper = _range_of_default(lowest, highest, using)
    name = "outbox_message_default"
    if promised is None or promised[:2] != (lower, upper):

        def promise() -> None:
            one_row("promise_range", using, name=name, lower=lower, upper=upper)

        log_lock.run(promise, using, exclusive=False, give_up=give_up)
    one_row("validate_range", using, name=name)
    fresh = "outbox_message_fresh"
    segments.make_table(fresh, using)
    one_row("guard_segment", using, name=fresh)
    log_lock.run(
        lambda: one_row("promote_default", using, lower=lower, upper=upper, name=fresh),
        using,
        give_up=give_up,
    )
    logger.info(
        "the default segment was turned into the segment of positions %d to %d", lower, upper - 1
    )
    done.promoted.append(segments.name_of(lower))


def add_segments(ahead: int, using: str) -> list[Segment]:
    """Add segments until `ahead` are empty and ahead of the head, and return the new ones.

    What lies in the default segment gets its own first: attaching a table would scan it under a
    lock that publishers wait for. Raises LogIsBusy.
    """
    with log_lock.alone(using, wait=True):
        promote_default(using, Done())
        return segments.create_ahead(ahead, using)


def remove(removal: Removal, using: str, done: Done, give_up: float | None = None) -> None:
    """Archive the removed messages, if the project archives; rewrite or drop the segment."""
    segment = removal.segment
    assert segment.lower is not None and segment.upper is not None
    record = _archive(removal, using)
    kept = 0 if removal.is_whole else rewrite(removal, using)

    lower = segment.lower

    def finish() -> None:
        if reader := check_readers(removal, using):
            raise ReaderCameBack(
                group=reader.group, channel=reader.channel, position=reader.position
            )
        if kept:
            one_row(
                "swap_segment",
                using,
                name=f"{segment.name}_new",
                lower=segment.lower,
                upper=segment.upper,
            )
        else:
            one_row("drop_segment", using, lower=segment.lower)
        for channel in removal.expired:
            position = removal.last_positions[channel]
            one_row("note_removed", using, channel=channel, position=position)
        # In the same transaction, so that each message lies in the log or in one archived file.
        archive.replace_restored(lower, record, using)

    try:
        log_lock.run(finish, using, give_up=give_up)
    except ReaderCameBack as error:
        logger.warning("segment %s was not removed: %s", segment.name, error)
        return
    archive.delete_obsolete(using)
    if record is not None:
        done.archived.append(record.name)
    logger.info(
        "retention changed segment %s: %s",
        segment.name,
        f"rewritten, {kept} kept" if kept else "dropped",
    )
    (done.compacted if kept else done.dropped).append(segment.name)


def _archive(removal: Removal, using: str) -> ArchivedSegment | None:
    """Write the removed messages to a file, if the project archives; return its unsaved row."""
    segment = removal.segment
    assert segment.lower is not None and segment.upper is not None
    if not settings().archive:
        return None
    rows = archive.read_rows(
        "read_removable",
        using,
        after=segment.lower - 1,
        upper=segment.upper,
        expired=removal.expired,
        latest=removal.latest,
        keyless=removal.keyless,
        horizon=removal.horizon,
    )
    return archive.write(
        rows, lower=segment.lower, upper=segment.upper, alias=settings().archive, using=using
    )


def rewrite(removal: Removal, using: str, channel: str = "", key: str | None = None) -> int:
    """Copy the messages that a segment keeps into a new table; return their number.

    `channel`, `key`: the key whose messages become tombstones, None for no key.
    """
    segment = removal.segment
    assert segment.lower is not None and segment.upper is not None
    name = f"{segment.name}_new"
    segments.make_table(name, using)
    kept = scalar(
        "copy_segment",
        using,
        lower=segment.lower,
        name=name,
        expired=removal.expired,
        latest=removal.latest,
        keyless=removal.keyless,
        horizon=removal.horizon,
        erased_channel=channel,
        erased_key=key,
    )
    segments.prepare(name, segment.lower, segment.upper, using)
    return int(kept)


def close_current(using: str, give_up: float | None = None) -> None:
    """Close the segment that the next position belongs to: the next one is allocated behind it.

    The positions in between stay unused. Then every message lies in a closed segment, which can be
    rewritten. Raises LogIsBusy.
    """
    done = Done()
    promote_default(using, done, give_up)
    segments.create_ahead(1, using, give_up=give_up)

    def close() -> None:
        for each in segments.list_segments(using):
            if each.use == "current" and each.upper is not None:
                one_row("advance_sequence", using, position=each.upper - 1)

    log_lock.run(close, using, give_up=give_up)


def _range_of_default(lowest: int, highest: int, using: str) -> tuple[int, int]:
    """Return the gap between segments in which the rows of the default segment lie."""
    present = segments.list_segments(using)
    below = [each.upper for each in present if each.upper is not None and each.upper <= lowest]
    above = [each.lower for each in present if each.lower is not None and each.lower > lowest]
    lower = max(below, default=1)
    if above:
        if min(above) <= highest:
            raise OutboxError(
                f"The default segment holds messages from {lowest} to {highest}, on both sides of "
                f"the segment at {min(above)}: move them by hand."
            )
        return lower, min(above)
    size = next_size(present)
    head = message_log.last_position(using)
    # Room for as many messages as are scanned: a publisher that meets the end of it would fail.
    room = max(2 * size, highest - lowest)
    return lower, ((head + room) // size + 1) * size


def next_size(present: list[Segment]) -> int:
    """Return how many positions the next segment has: more, the more segments hold messages."""
    bounds = [(s.lower, s.upper) for s in present if s.lower is not None and s.upper is not None]
    lower, upper = bounds[-1] if bounds else (0, segments.DEFAULT_SIZE)
    size = upper - (lower if lower > 1 else 0)
    in_use = sum(each.use in ("full", "current") for each in present)
    return size * 2 if in_use > MOST_SEGMENTS else size


def _drop_promise(using: str) -> None:
    one_row("drop_promise", using, name="outbox_message_default")
