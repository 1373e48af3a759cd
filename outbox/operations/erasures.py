"""Erase a key's values everywhere, and bring archived messages back; both are recorded."""

from __future__ import annotations

import datetime

from .. import events
from ..encoding import key_text
from ..models import ArchivedSegment
from ..retention import erasure, restore
from ..retention.erasure import Found
from . import action_log


def erase(
    channel: str, key: str, *, reason: str, using: str, execute: bool = True, by: str | None = None
) -> Found:
    """Put tombstones in the place of a key's payloads and headers; return what was found before.

    In the log, in parked copies and in archived files; positions, types and the key stay, and
    handlers see `message.erased`. `execute=False`: only look. `by`: who; see `action_log.actor`.
    A key that has no message is no error. Raises LogIsBusy, and ArchiveBroken when a file is lost
    or broken: then everything else is erased, or some of it when the storage fails; call it again.
    """
    channel, key = events.valid_channel(channel), key_text(key) or ""
    found = erasure.find(channel, key, using)
    if execute and (found.messages or found.parked or found.files):
        # Before it begins: one that fails halfway, or is killed, has a record as well.
        what = {"channel": channel, "key": key, "messages": found.messages}
        what |= {"parked": found.parked, "files": len(found.files)}
        action_log.record("erase", "", using=using, new=what, reason=reason, by=by)
    if execute:
        # Delete old files also when nothing was found: a run that was killed may have left some.
        erasure.erase(channel, key, using)
    return found


def bring_back(
    first: int,
    last: int,
    *,
    using: str,
    kept_for: datetime.timedelta = restore.KEPT_FOR,
    execute: bool = True,
    reason: str = "",
) -> tuple[list[ArchivedSegment], int]:
    """Restore the archived files that hold messages between two positions, both inclusive.

    Returns the files, and how many messages came back (0 with `execute=False`). Raises
    ArchiveBroken, CannotRestore and LogIsBusy.
    """
    records = list(
        ArchivedSegment.objects.using(using).filter(
            first_position__lte=last, last_position__gte=first, is_obsolete=False
        )
    )
    if not execute or not records:
        return records, 0
    restored: list[ArchivedSegment] = []
    try:
        return records, restore.restore(records, using, kept_for=kept_for, restored=restored)
    finally:
        if restored:  # also those before one that fails
            messages = sum(record.messages for record in restored)
            what = {"files": [record.name for record in restored], "messages": messages}
            action_log.record("restore", "", using=using, new=what, reason=reason)
