"""Restore: archived messages back into the log, at the positions that they had.

An ordinary reset then replays them. They are kept from removal for a while, since the rules that
removed them still hold.
"""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Iterable, Sequence

import msgspec
from django.db import connections
from django.utils import timezone

from .. import message_log
from ..exceptions import CannotRestore
from ..models import ArchivedSegment
from ..sql import one_row, run_statement, scalar
from . import archive, log_lock, segments
from .segments import Segment

KEPT_FOR = datetime.timedelta(days=7)
"""How long restored messages are kept from removal when nothing else is said."""


def restore(
    records: Sequence[ArchivedSegment],
    using: str,
    *,
    kept_for: datetime.timedelta = KEPT_FOR,
    restored: list[ArchivedSegment] | None = None,
) -> int:
    """Bring the messages of archived files back, and return how many.

    `kept_for`: for how long no rule removes them again. `restored`: takes the files whose messages
    are back, also when a later one fails. Raises ArchiveBroken for a file that was
    changed, CannotRestore when the log still holds one of the positions, LogIsBusy.
    """
    with log_lock.alone(using, wait=True):
        total, until = 0, timezone.now() + kept_for
        in_order = sorted(records, key=lambda each: (each.lower, each.first_position))
        for lower, group in itertools.groupby(in_order, lambda each: each.lower):
            files = list(group)
            total += _restore_segment(lower, files, until, using)
            if restored is not None:
                restored += files
        return total


def _restore_segment(
    lower: int, records: list[ArchivedSegment], until: datetime.datetime, using: str
) -> int:
    upper = max(record.upper for record in records)
    present = _present(lower, upper, records[0], using)
    name = f"{segments.name_of(lower)}_new"
    segments.make_table(name, using)
    if present is not None:
        one_row("copy_whole_segment", using, lower=lower, name=name)
    total = 0
    for record in records:
        messages = archive.messages_of(record)
        while some := list(itertools.islice(messages, archive.CHUNK)):
            _check_absent(some, record, using)
            lines = msgspec.json.encode(some).decode()
            total += scalar("insert_archived", using, name=name, messages=lines)
    segments.prepare(name, lower, upper, using)

    def finish() -> None:
        if present is not None:
            one_row("swap_segment", using, name=name, lower=lower, upper=upper)
        else:
            one_row("rename_table", using, name=name, new_name=segments.name_of(lower))
            new = segments.name_of(lower)
            one_row("attach_segment", using, name=new, lower=lower, upper=upper)
        with connections[using].cursor() as cursor:
            run_statement(cursor, "note_restored", {"lower": lower, "upper": upper})
        # In the same transaction, so that maintenance does not remove what has just been restored.
        for record in records:
            record.restored_until = until
            record.save(using=using, update_fields=["restored_until"])

    log_lock.run(finish, using)
    return total


def _present(lower: int, upper: int, record: ArchivedSegment, using: str) -> Segment | None:
    """Return the segment that is still there, if it is the one that the files come from."""
    for each in segments.list_segments(using):
        if each.lower is None or each.upper is None or each.upper <= lower or each.lower >= upper:
            continue
        if (each.lower, each.upper) != (lower, upper):
            reason = f"the log has a segment of positions {each.lower} to {each.upper - 1} there"
            raise CannotRestore(name=record.name, reason=reason)
        return each
    if upper - 1 > message_log.last_position(using):
        raise CannotRestore(name=record.name, reason="its positions were not allocated in this log")
    return None


def _check_absent(
    messages: Iterable[archive.ArchivedMessage], record: ArchivedSegment, using: str
) -> None:
    positions = [message.position for message in messages]
    found = scalar("first_present", using, positions=positions)
    if found is not None:
        raise CannotRestore(name=record.name, reason=f"the log still holds position {found}")
