"""The initial snapshot: one message, of operation "snapshot", for each row that is there already.

A chunk locks its rows against writers, stores their images and commits. So whatever a row was
before lies at lower positions than its image, whatever it becomes at higher ones, and a
projection that applies the messages in order is right in the end. A row in a writer's hands is
waited for alone, with no other lock held: a snapshot cannot deadlock with the project.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import msgspec
from django.core.exceptions import FieldError
from django.db import connections, models, router, transaction
from django.db.models.expressions import RawSQL

from .. import message_log
from ..exceptions import InvalidSnapshot
from ..messages import Draft
from ..models import Snapshot
from ..sql import one_row, run_statement, scalar
from .capture import CaptureTrigger, captures_of, message_type
from .trigger_sql import quoted

CHUNK_BYTES = 8_000_000
"""Bytes of images in one insert, about."""

Step = Literal["moved", "stuck", "done"]


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """How far a snapshot is."""

    emitted: int
    """Messages so far, those of earlier runs included."""
    total: int
    """About how many rows the table has, as the server estimates; 0 when it does not know."""
    is_finished: bool


def run(
    model: type[models.Model],
    where: Mapping[str, Any] | None = None,
    *,
    channel: str | None = None,
    chunk_size: int = 1000,
    restart: bool = False,
    progress: Callable[[Progress], None] | None = None,
    using: str | None = None,
) -> int:
    """Store a message for each row of a captured model; return how many there are in all.

    Commits after each chunk, so a run that was interrupted is gone on with by the next one.
    Messages have the key and the fields of the capture; its condition on inserted rows applies.

    `where`: Django lookups that choose rows, such as `{"active": True}`. `channel`: needed when
    the model is captured in several. `chunk_size`: most rows in a transaction. `restart`: begin
    anew instead of going on. `progress`: called after each chunk. `using`: the database alias;
    by default the one the router writes the model to. It must not be in a transaction.

    Raises InvalidSnapshot.
    """
    using = using or router.db_for_write(model)
    if connections[using].in_atomic_block:
        raise InvalidSnapshot("A snapshot commits after each chunk: call it outside atomic().")
    trigger = _trigger(model, channel, using)
    rows = _rows(model, where or {}, trigger, using)
    conditions = json.dumps(where or {}, sort_keys=True, default=str)
    state = _begin(message_type(model), trigger.channel, conditions, restart, using)
    total = _estimate(model, using)
    step: Step = "moved"
    while step != "done":
        with transaction.atomic(using=using):
            _read_committed(using)
            state = _locked(state, using)
            step = _advance(state, rows, trigger, chunk_size, step == "stuck")
        if progress is not None and step != "stuck":
            progress(Progress(state.emitted, total, step == "done"))
    return state.emitted


def parse_where(texts: Iterable[str]) -> dict[str, Any]:
    """Return the lookups of texts such as `active=true` and `created__gte=2026-01-01`.

    A value is JSON where it can be, else text. Raises InvalidSnapshot.
    """
    where = {}
    for text in texts:
        lookup, equals, value = text.partition("=")
        if not equals:
            raise InvalidSnapshot(f"{text!r}: write a Django lookup and a value, field=value.")
        try:
            where[lookup.strip()] = json.loads(value)
        except ValueError:
            where[lookup.strip()] = value
    return where


def _trigger(model: type[models.Model], channel: str | None, using: str) -> CaptureTrigger:
    """Return the trigger whose key and image the messages have; all of them must be installed."""
    found: list[tuple[Any, CaptureTrigger]] = [
        (owner, t) for owner, t in captures_of(model) if channel in (None, t.channel)
    ]
    channels = list(dict.fromkeys(trigger.channel for _, trigger in found))
    if not channels:
        where = f" in channel {channel!r}" if channel else ""
        raise InvalidSnapshot(
            f"{model._meta.label} is not captured{where}: what changes during a snapshot would "
            "be lost. Add outbox.capture() to the model first."
        )
    if len(channels) > 1:
        raise InvalidSnapshot(
            f"{model._meta.label} is captured in {', '.join(channels)}: name one as channel."
        )
    for owner, trigger in found:
        if trigger.get_installation_status(owner, using) != ("INSTALLED", True):
            raise InvalidSnapshot(
                f"The trigger {trigger.name} of {owner._meta.label} is not installed and enabled "
                f"in {using!r}: what changes during a snapshot would be lost. Run migrate first."
            )
    return found[0][1]


def _rows(
    model: type[models.Model], where: Mapping[str, Any], trigger: CaptureTrigger, using: str
) -> models.QuerySet[Any]:
    """Return the rows to store, with their keys and images."""
    table = connections[using].ops.quote_name(model._meta.db_table)
    rows: models.QuerySet[Any] = model._base_manager.using(using).order_by("pk")
    if trigger.captures == "insert":
        condition = trigger.row_condition(model).replace("%", "%%")
        matches = RawSQL(
            f"SELECT {condition} FROM (SELECT {table}.*) AS new", (), models.BooleanField()
        )
        rows = rows.alias(outbox_matches=matches).filter(outbox_matches=True)
    try:
        rows = rows.filter(**where)
    except (FieldError, ValueError) as error:
        raise InvalidSnapshot(f"The rows cannot be chosen by {dict(where)}: {error}") from error
    text = models.TextField()
    rows = rows.only("pk").annotate(
        outbox_key=RawSQL(trigger.key_text(model, table), (), text),
        outbox_image=RawSQL(f"({trigger.image(model, table)})::text", (), text),
    )
    return rows


def _begin(model: str, channel: str, conditions: str, restart: bool, using: str) -> Snapshot:
    """Return the state to go on from, a new one when there is none or it is finished."""
    with transaction.atomic(using=using):
        snapshots = Snapshot.objects.using(using).select_for_update()
        state, _ = snapshots.get_or_create(
            model=model, channel=channel, defaults={"conditions": conditions}
        )
        if restart or state.finished_at is not None:
            state.delete()
            return Snapshot.objects.using(using).create(
                model=model, channel=channel, conditions=conditions
            )
    if state.conditions != conditions:
        raise InvalidSnapshot(
            f"A snapshot of {model} in {channel!r} where {state.conditions} is unfinished: go on "
            "with the same conditions, or restart it."
        )
    return state


def _locked(state: Snapshot, using: str) -> Snapshot:
    found = Snapshot.objects.using(using).select_for_update().filter(pk=state.pk).first()
    if found is None:
        raise InvalidSnapshot(
            f"The snapshot of {state.model} in {state.channel!r} was restarted by another process, "
            "which goes on; this one ends."
        )
    return found


def _advance(
    state: Snapshot, rows: models.QuerySet[Any], trigger: CaptureTrigger, size: int, alone: bool
) -> Step:
    """Store the next chunk, up to the first row that a writer holds; `alone`: wait for that one."""
    rows = _after(rows, state.last_key)
    pks = list(rows.values_list("pk", flat=True)[: 1 if alone else size])
    if not pks:
        state.finished_at = datetime.datetime.now(datetime.UTC)
        _save(state)
        return "done"
    # Lock the rows first, by a statement without joins: FOR UPDATE OF accepts no schema.
    lockable = rows.model._base_manager.using(rows.db).filter(pk__in=pks)
    locking = lockable.select_for_update(skip_locked=not alone, no_key=True)
    locked = set(locking.values_list("pk", flat=True))
    free = list(itertools.takewhile(locked.__contains__, pks))
    if not free and not alone:
        return "stuck"
    # A row may be deleted, or not match any more, since its key was read.
    found = list(rows.filter(pk__in=free)) if free else []
    _append(found, trigger, rows)
    last = free[-1] if free else pks[0]
    state.last_key = [str(part) for part in (last if isinstance(last, tuple) else (last,))]
    state.emitted += len(found)
    _save(state)
    return "moved"


def _after(rows: models.QuerySet[Any], key: list[str] | None) -> models.QuerySet[Any]:
    if key is None:
        return rows
    fields = rows.model._meta.pk_fields
    last = [field.to_python(text) for field, text in zip(fields, key, strict=True)]
    return rows.filter(pk__gt=last if len(last) > 1 else last[0])


def _append(chunk: list[Any], trigger: CaptureTrigger, rows: models.QuerySet[Any]) -> None:
    """Store the images of locked rows in their order."""
    channel, type_name = trigger.channel, message_type(rows.model)
    headers = _headers(rows.model, rows.db)
    drafts, size = [], 0
    for row in chunk:
        payload = f'{{"operation":"snapshot","old":null,"new":{row.outbox_image}}}'.encode()
        drafts.append(Draft(channel, type_name, msgspec.Raw(payload), row.outbox_key, headers))
        size += len(payload)
        if size > CHUNK_BYTES:
            _store(drafts, trigger, rows.db)
            drafts, size = [], 0
    _store(drafts, trigger, rows.db)


def _store(drafts: list[Draft], trigger: CaptureTrigger, using: str) -> None:
    if trigger.stream:
        for draft in drafts:
            message_log.append_to_stream(draft, None, using)
    else:
        message_log.append_many(drafts, using)


def _headers(model: type[models.Model], using: str) -> dict[str, str] | None:
    """Return the header of messages whose table is not in the log's schema."""
    table = one_row("see_captured_table", using, table=quoted(model._meta.db_table))
    return {"schema": table[1]} if table is not None and table[1] is not None else None


def _save(state: Snapshot) -> None:
    state.last_commit_at = datetime.datetime.now(datetime.UTC)
    state.save()


def _read_committed(using: str) -> None:
    with connections[using].cursor() as cursor:
        run_statement(cursor, "read_committed")


def _estimate(model: type[models.Model], using: str) -> int:
    return int(scalar("estimate_rows", using, table=quoted(model._meta.db_table)))
