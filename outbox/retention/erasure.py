"""Erasure: the payloads and headers of one key become tombstones; positions, types and key stay.

The segments that hold the key are rewritten and swapped in, so that no table's file keeps the old
values. Parked copies and archived files are rewritten too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import msgspec
from django.db import connections

from .. import message_log
from ..exceptions import ArchiveBroken
from ..messages import ERASED_HEADERS
from ..models import ArchivedSegment, ParkedMessage
from ..sql import one_row, run_statement, scalar
from . import archive, log_lock, maintenance, segments
from .removals import Removal
from .segments import Segment


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """Where the values of a key lie."""

    messages: int
    parked: int
    files: list[str]
    """Names of archived files."""
    unreadable: list[str] = dataclasses.field(default_factory=list)
    """Names of archived files that are lost or broken, so that the key may be in them."""


def find(channel: str, key: str, using: str) -> Found:
    """Return where the values of a key lie; reads every archived file of the channel's time."""
    parked = ParkedMessage.objects.using(using).filter(channel=channel, key=key)
    files, broken = _files(channel, key, using)
    return Found(
        scalar("count_key", using, channel=channel, key=key),
        parked.exclude(headers={"outbox.erased": True}).count(),
        [record.name for record in files],
        [error.name for error in broken],
    )


def erase(channel: str, key: str, using: str) -> None:
    """Put tombstones in the place of a key's values, in the log, parked copies and archived files.

    What is published for the key meanwhile is not erased. Can be killed and called again. Raises
    LogIsBusy, and at the end ArchiveBroken for the first file that cannot be read.
    """
    with log_lock.alone(using, wait=True):
        archive.delete_obsolete(using)
        _erase(channel, key, using)


def _erase(channel: str, key: str, using: str) -> None:
    if any(each.use != "full" for each in _segments(channel, key, using)):
        maintenance.close_current(using)
    for segment in _segments(channel, key, using):
        _rewrite(segment, channel, key, using)
    with connections[using].cursor() as cursor:
        run_statement(cursor, "erase_parked", {"channel": channel, "key": key})
        has_parked = cursor.rowcount > 0
        run_statement(cursor, "erase_errors", {"channel": channel, "key": key})
        # Old versions of the rows are in the tables' files until these are rewritten.
        if not connections[using].in_atomic_block:
            run_statement(cursor, "vacuum_cursors")
            if has_parked:
                run_statement(cursor, "vacuum_parked")
    files, broken = _files(channel, key, using)
    for record in files:
        archive.rewrite(record, _lines(record, channel, key), using)
    if broken:
        raise broken[0]


def _segments(channel: str, key: str, using: str) -> list[Segment]:
    found = []
    for segment in segments.list_segments(using):
        if scalar("segment_has_key", using, lower=segment.lower, channel=channel, key=key):
            found.append(segment)
    return found


def _rewrite(segment: Segment, channel: str, key: str, using: str) -> None:
    horizon = message_log.horizon(using)
    whole = Removal(segment, [], [], [], False, {}, horizon)
    maintenance.rewrite(whole, using, channel, key)
    log_lock.run(
        lambda: one_row(
            "swap_segment",
            using,
            name=f"{segment.name}_new",
            lower=segment.lower,
            upper=segment.upper,
        ),
        using,
    )


def _files(channel: str, key: str, using: str) -> tuple[list[ArchivedSegment], list[ArchiveBroken]]:
    """Return the files that hold the key, and why others cannot be read."""
    found, broken = [], []
    for record in ArchivedSegment.objects.using(using).filter(is_obsolete=False):
        try:
            if any(_is_one(message, channel, key) for message in archive.messages_of(record)):
                found.append(record)
        except ArchiveBroken as error:
            broken.append(error)
    return found, broken


def _is_one(message: archive.ArchivedMessage, channel: str, key: str) -> bool:
    is_erased = bytes(message.headers).decode() == ERASED_HEADERS
    return message.channel == channel and message.key == key and not is_erased


def _lines(record: ArchivedSegment, channel: str, key: str) -> Iterator[bytes]:
    for message in archive.messages_of(record):
        if _is_one(message, channel, key):
            message.payload = msgspec.Raw(b"null")
            message.headers = msgspec.Raw(ERASED_HEADERS.encode())
        yield msgspec.json.encode(message) + b"\n"
