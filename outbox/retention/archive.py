"""The archive: what retention removes, as files in a Django storage.

One file per removal from a segment: gzipped JSON lines, or Parquet. It is read back and compared
before anything is removed. `outbox_archived_segment` has a row per file, with its checksum.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import gzip
import hashlib
import itertools
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from django.core.files import File
from django.core.files.storage import Storage, storages
from django.db import connections, transaction
from django.utils import timezone

from ..conf import settings
from ..exceptions import ArchiveBroken, OutboxError
from ..models import ArchivedSegment
from ..sql import run_statement, with_zones
from . import parquet

SUFFIXES = {"ndjson": "ndjson.gz", "parquet": "parquet"}
Facts = tuple[int, int, int, str]
CHUNK = 2000
"""Messages read from the log at a time."""


class ArchivedMessage(msgspec.Struct):
    """One line of a file: a message as it lay in the log."""

    position: int
    channel: str
    key: str | None
    type: str
    payload: msgspec.Raw
    headers: msgspec.Raw
    created_at: datetime.datetime


@dataclasses.dataclass(slots=True)
class Digest:
    """What a file is compared by: count, positions, and the checksum of its lines."""

    messages: int = 0
    first: int = 0
    last: int = 0
    sha256: Any = dataclasses.field(default_factory=hashlib.sha256)

    def add(self, line: bytes, position: int) -> None:
        """Count one line."""
        self.messages += 1
        self.first = self.first or position
        self.last = position
        self.sha256.update(line)

    @property
    def facts(self) -> Facts:
        """Return what two equal files have in common."""
        return self.messages, self.first, self.last, self.sha256.hexdigest()


_decode = msgspec.json.Decoder(ArchivedMessage).decode


def read_rows(statement: str, using: str, **parameters: Any) -> Iterator[tuple[Any, ...]]:
    """Give the rows of `read_segment` or `read_removable`, some at a time."""
    after = parameters.pop("after")
    while True:
        with connections[using].cursor() as cursor:
            run_statement(cursor, statement, {**parameters, "after": after, "most": CHUNK})
            rows = cursor.fetchall()
        for row in rows:
            yield with_zones(row)
        if len(rows) < CHUNK:
            return
        after = rows[-1][0]


def write(
    rows: Iterable[tuple[Any, ...]], *, lower: int, upper: int, alias: str, using: str
) -> ArchivedSegment | None:
    """Write messages to a file of a storage, read it back, and return its row; None without any.

    The row is not stored: that belongs into the transaction that removes the messages. Raises
    ArchiveBroken when the file does not hold what was written, or the storage fails.
    """
    lines: Iterator[bytes] = map(line_of, rows)
    first_line = next(lines, None)
    if first_line is None:
        return None
    name = _free_name(alias, lower, upper, settings().archive_format, using)
    lines = itertools.chain([first_line], lines)
    name, (messages, first, last, checksum), file_checksum = _save(lines, alias, name)
    return ArchivedSegment(
        name=name,
        storage=alias,
        lower=lower,
        upper=upper,
        messages=messages,
        first_position=first,
        last_position=last,
        checksum=checksum,
        file_checksum=file_checksum,
    )


def messages_of(record: ArchivedSegment) -> Iterator[ArchivedMessage]:
    """Give the messages of a file, in position order; raises ArchiveBroken at a change of it."""
    storage, digest = _storage(record.storage, record.name), Digest()
    if _checksum_of(storage, record.name) != record.file_checksum:
        raise ArchiveBroken(name=record.name, reason="its checksum is another one")
    for line, message in _lines(storage, record.name):
        digest.add(line, message.position)
        yield message
    if digest.facts[0] != record.messages or digest.facts[3] != record.checksum:
        raise ArchiveBroken(name=record.name, reason="its checksum is another one")


def verify(record: ArchivedSegment) -> None:
    """Read a file to its end; raises ArchiveBroken when it was changed."""
    for _ in messages_of(record):
        pass


def digest_of(storage: Storage, name: str) -> Digest:
    """Read a file and return what it holds; raises ArchiveBroken."""
    digest = Digest()
    for line, message in _lines(storage, name):
        digest.add(line, message.position)
    return digest


def line_of(row: tuple[Any, ...]) -> bytes:
    """Return a message as one line of a file."""
    position, channel, key, type_name, payload, headers, created_at = row
    return (
        msgspec.json.encode(
            ArchivedMessage(
                position,
                channel,
                key,
                type_name,
                msgspec.Raw(payload.encode()),
                msgspec.Raw(headers.encode()),
                created_at.astimezone(datetime.UTC),
            )
        )
        + b"\n"
    )


def rewrite(record: ArchivedSegment, lines: Iterable[bytes], using: str) -> None:
    """Put other lines in the place of a file's, in a new file; the old one is deleted."""
    format_name = "parquet" if _is_parquet(record.name) else "ndjson"
    wanted = _free_name(record.storage, record.lower, record.upper, format_name, using)
    name, facts, file_checksum = _save(lines, record.storage, wanted)
    with transaction.atomic(using=using):
        old = ArchivedSegment.objects.using(using).get(pk=record.pk)
        record.name, record.checksum, record.file_checksum = name, facts[3], file_checksum
        record.save(using=using, update_fields=["name", "checksum", "file_checksum"])
        old.pk, old.is_obsolete = None, True
        old.save(using=using, force_insert=True)
    delete_obsolete(using)


def replace_restored(lower: int, record: ArchivedSegment | None, using: str) -> None:
    """Store the row of a file; files that were restored into the segment are obsolete with it.

    What they held was in the log again, so the new file holds what is removed of it.
    """
    if record is None:
        return
    files = ArchivedSegment.objects.using(using).filter(lower=lower)
    files.filter(restored_until__isnull=False).update(is_obsolete=True)
    record.save(using=using)


def delete_obsolete(using: str) -> None:
    """Delete the files that were replaced; the row goes last, so that a killed one is repeated."""
    for record in ArchivedSegment.objects.using(using).filter(is_obsolete=True):
        with _storage_errors(record.name):
            storages[record.storage].delete(record.name)
        record.delete(using=using)


def _free_name(alias: str, lower: int, upper: int, format_name: str, using: str) -> str:
    """Return a file name that no row has; a killed process may have left a file of that name."""
    files = ArchivedSegment.objects.using(using).filter(storage=alias, lower=lower)
    taken = set(files.values_list("name", flat=True))
    for number in itertools.count(1):
        name = f"outbox/{lower:020d}-{upper - 1:020d}-{number}.{SUFFIXES[format_name]}"
        if name not in taken:
            break
    with _storage_errors(name):
        if storages[alias].exists(name):
            storages[alias].delete(name)
    return name


def is_protected(record: ArchivedSegment) -> bool:
    """Return whether the restored messages of a file are still kept from removal."""
    return record.restored_until is not None and record.restored_until > timezone.now()


def _save(lines: Iterable[bytes], alias: str, wanted: str) -> tuple[str, Facts, str]:
    """Write lines to a file and read it back; return its name, its facts and its checksum."""
    storage, digest = _storage(alias, wanted), Digest()

    def counted() -> Iterator[bytes]:
        for line in lines:
            digest.add(line, _decode(line).position)
            yield line

    with tempfile.TemporaryFile() as file:
        if _is_parquet(wanted):
            parquet.write(map(_columns, counted()), file)
        else:
            with gzip.GzipFile(fileobj=file, mode="wb") as packed:
                packed.writelines(counted())
        file.seek(0)
        with _storage_errors(wanted):
            name = storage.save(wanted, File(file, name=wanted))
    if digest_of(storage, name).facts != digest.facts:
        raise ArchiveBroken(name=name, reason="it does not hold what was written")
    return name, digest.facts, _checksum_of(storage, name)


def _is_parquet(name: str) -> bool:
    return name.endswith(".parquet")


def _columns(line: bytes) -> tuple[Any, ...]:
    message = _decode(line)
    texts = bytes(message.payload).decode(), bytes(message.headers).decode()
    return message.position, message.channel, message.key, message.type, *texts, message.created_at


def _checksum_of(storage: Storage, name: str) -> str:
    with _storage_errors(name), storage.open(name) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _storage(alias: str, name: str) -> Storage:
    with _storage_errors(name):
        return storages[alias]


@contextlib.contextmanager
def _storage_errors(name: str) -> Iterator[None]:
    """Raise ArchiveBroken for what a storage raises, which may be any class of its client."""
    try:
        yield
    except OutboxError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".rstrip(".")
        raise ArchiveBroken(name=name, reason=reason) from error


def _lines(storage: Storage, name: str) -> Iterator[tuple[bytes, ArchivedMessage]]:
    with _storage_errors(name), storage.open(name) as file:
        if _is_parquet(name):
            for row in parquet.read(file):
                line = line_of(row)
                yield line, _decode(line)
        else:
            with gzip.GzipFile(fileobj=file) as packed:
                for line in packed:
                    yield line, _decode(line)
