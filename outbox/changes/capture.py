"""Model changes as messages: triggers that append what a statement did to the log.

Each captured operation is one statement-level trigger with transition tables, so a statement
makes one insert into the log, for any number of rows and any client. They are ordinary
django-pgtrigger triggers: `makemigrations` sees them, `pgtrigger.ignore()` disables them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import pgtrigger
from django.apps import apps
from django.db import DEFAULT_DB_ALIAS, models
from pgtrigger.core import INSTALLED, OUTDATED, UNALLOWED, UNINSTALLED

from .. import events
from ..conf import require_apps
from ..exceptions import InvalidCapture
from ..sql import one_row
from . import trigger_sql
from .fields import (
    named_fields,
    names_of,
    refuse_empty_keys,
    refuse_reserved_columns,
    table_fields,
)
from .trigger_sql import OPERATIONS, CaptureSql

Operation = Literal["insert", "update", "delete"]
Names = str | Sequence[str]
Model = TypeVar("Model", bound=models.Model)


def capture(
    *,
    channel: str,
    on: Operation | Iterable[Operation] = ("insert", "update", "delete"),
    key: Names | None = None,
    fields: Names | None = None,
    exclude: Names | None = None,
    condition: pgtrigger.Condition | None = None,
    was: Names = (),
    stream: bool = False,
) -> Capture:
    """Capture the changes of a model's table as messages of `channel`.

    Write `triggers = [*outbox.capture(channel="authors")]` in the model's `Meta`, or decorate
    the model with `@outbox.capture(channel="authors")`.

    `on`: "insert", "update", "delete", or several of them; all by default.
    `key`: the field or fields whose values are the messages' key, several joined by ":"; the
    primary key by default, () for none. A NULL among them makes a message without a key.
    `fields`, `exclude`: the fields that the messages hold, or leave out; the primary key is
    always held. With either, an update that changes none of the held fields is left out.
    `condition`: a pgtrigger condition on `old__…` and `new__…`, for each row.
    `was`: labels that the model had in other apps, such as "blog.Author", whose messages
    `outbox.Change` reads too; renames within the app are known from its migrations.
    `stream`: whether the channel is one of streams: the messages of each key are numbered from 1.
    Raises InvalidChannel, InvalidCapture (of names that are not fields as soon as `makemigrations`
    renders the triggers), and NotInstalled without pgtrigger and outbox in INSTALLED_APPS.
    """
    require_apps()
    if fields is not None and exclude is not None:
        raise InvalidCapture("capture() takes fields= or exclude=, not both.")
    _declare(channel, stream)
    return Capture(
        CaptureTrigger(
            captures=captures,
            channel=channel,
            key=names_of(key),
            fields=names_of(fields),
            exclude=names_of(exclude),
            condition=condition,
            was=names_of(was) or (),
            stream=stream,
        )
        for captures in _operations(on)
    )


class Capture(list["CaptureTrigger"]):
    """The triggers of one `capture()`; called with a model, it registers them there."""

    def __call__(self, model: type[Model]) -> type[Model]:
        """Register the triggers on `model` and return it."""
        pgtrigger.register(*self)(model)
        return model


class CaptureTrigger(pgtrigger.Trigger):
    """The trigger of one operation of one `capture()`; its arguments are its attributes."""

    when = pgtrigger.After
    level = pgtrigger.Statement

    def __init__(
        self,
        *,
        captures: Operation,
        channel: str,
        key: tuple[str, ...] | None = None,
        fields: tuple[str, ...] | None = None,
        exclude: tuple[str, ...] | None = None,
        condition: pgtrigger.Condition | None = None,
        was: tuple[str, ...] = (),
        stream: bool = False,
    ) -> None:
        self.captures = captures
        self.was = was
        self.stream = stream
        self.channel = channel
        self.key = key
        self.fields = fields
        self.exclude = exclude
        operation, tables = OPERATIONS[captures]
        rows = pgtrigger.Referencing(**tables)  # type: ignore[no-untyped-call]
        name = f"outbox_{trigger_sql.slug(channel)}_{captures}"
        super().__init__(name=name, operation=operation, referencing=rows, condition=condition)

    def compile(self, model: Any) -> CaptureSql:  # type: ignore[override]
        """Return the trigger as migrations hold it, with the condition inside its function."""
        append, found = self._function(model)
        identity = {"name": str(self.name), "captures": self.captures, "channel": self.channel}
        pk = [field.column for field in model._meta.pk_fields]
        return CaptureSql(
            **identity, pgid=self.get_pgid(model), append=append, found=found, pk=pk
        ).compile(model)

    def register(self, *models: Any) -> Any:
        """Register the trigger on models; raises InvalidCapture where it would be a second one."""
        try:
            return super().register(*models)
        except KeyError as error:
            labels = ", ".join(model._meta.label for model in models)
            raise InvalidCapture(
                f"{labels} captures {self.captures}s for channel {self.channel!r} twice, or for "
                "one of nearly the same name, and both triggers would have one name: leave one "
                "out, divide the operations among them by on=, or use another channel."
            ) from error

    def see(self, model: Any, using: str) -> tuple[Any, ...] | None:
        """Return whether the trigger fires, its hash, its source, and whether it finds the log."""
        table = trigger_sql.quoted(model._meta.db_table)
        return one_row("see_capture_trigger", using, table=table, name=self.get_pgid(model))

    def get_installation_status(
        self, model: Any, database: str | None = None
    ) -> tuple[str, bool | None]:
        """Return pgtrigger's word for what the database has, and whether the trigger fires."""
        using = database or DEFAULT_DB_ALIAS
        if not self.allow_migrate(model, database=using):
            return UNALLOWED, None
        seen = self.see(model, using)
        if seen is None:
            return UNINSTALLED, None
        compiled = self.compile(model)
        is_current = seen[1] == compiled.hash and seen[2] == compiled.body
        return INSTALLED if is_current else OUTDATED, seen[0]

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        """Return what the migration of an unmanaged model writes; see `installed`."""
        return CaptureSql(name=str(self.name), captures=self.captures).deconstruct()

    def _function(self, model: Any) -> tuple[str, str]:
        """Return the statement that stores the messages, and the condition to run it."""
        refuse_reserved_columns(model, trigger_sql.RESERVED_COLUMNS)
        parts = self._pairs(model) if self.captures == "update" else self._rows(model)
        found = parts.pop("found")
        if self.stream:
            refuse_empty_keys(model, self._key_fields(model), self.channel)
        append = trigger_sql.fill(
            "append_to_streams" if self.stream else "append",
            channel=trigger_sql.literal(self.channel),
            type=trigger_sql.literal(message_type(model)),
            **parts,
        )
        if self.captures == "insert" and self.condition is None:
            return append, "true"
        return append, f"EXISTS (SELECT FROM {found})"

    def _rows(self, model: Any) -> dict[str, str]:
        """Return the parts of the insert where each message is about one row."""
        row = "old" if self.captures == "delete" else "new"
        rows = f"{trigger_sql.fill(self.captures)} WHERE {self.row_condition(model)}"
        return {
            "key": self.key_text(model, row),
            "operation": f"'{self.captures}'",
            "old": "NULL",
            "new": "NULL",
            row: self.image(model, row),
            "source": rows,
            "found": rows,
        }

    def _pairs(self, model: Any) -> dict[str, str]:
        """Return the parts of the insert where each message is about an old and a new row."""
        chosen, pk = self._chosen(model), model._meta.pk_fields
        same = (f"old.{c} = new.{c}" for c in map(trigger_sql.column, pk))
        changed = [trigger_sql.is_changed(field) for field in chosen or () if field not in pk]
        pairs = trigger_sql.fill(
            "pairs",
            rows=trigger_sql.fill("update"),
            condition=self.row_condition(model),
            is_same_row=" AND ".join(same),
            is_changed="true" if chosen is None else " OR ".join(changed) or "false",
        )
        old_key, new_key = (self.key_text(model, row) for row in ("old", "new"))
        old, new = (f"{self.image(model, row)} - 'outbox_ordinal'" for row in ("old", "new"))
        chooses = chosen is not None or self.condition is not None
        return {
            "key": f"CASE outbox_operation WHEN 'delete' THEN {old_key} ELSE {new_key} END",
            "operation": "outbox_operation",
            "old": f"CASE WHEN outbox_operation <> 'insert' THEN {old} END",
            "new": f"CASE WHEN outbox_operation <> 'delete' THEN {new} END",
            "source": trigger_sql.fill("pairs_in_order", pairs=pairs),
            "found": pairs if chooses else "new_values",
        }

    def image(self, model: type[models.Model], row: str) -> str:
        """Return the SQL of a row as jsonb, by column; `row`: what the query calls the row."""
        return trigger_sql.image(row, self._chosen(model), model._meta.pk_fields)

    def key_text(self, model: type[models.Model], row: str) -> str:
        """Return the SQL of a row's key."""
        texts = [trigger_sql.text(field, row) for field in self._key_fields(model)]
        if len(texts) < 2:
            return texts[0] if texts else "NULL"
        escaped = [rf"replace(replace({text}, '\', '\\'), ':', '\:')" for text in texts]
        return " || ':' || ".join(escaped)

    def _key_fields(self, model: type[models.Model]) -> list[Any]:
        return model._meta.pk_fields if self.key is None else named_fields(model, self.key)

    def row_condition(self, model: Any) -> str:
        """Return the SQL of the condition on the rows old and new."""
        condition = self.get_condition(model)
        sql = condition.resolve(model).strip() if condition else "true"  # type: ignore[no-untyped-call]
        missing = {"insert": "OLD", "delete": "NEW"}.get(self.captures)
        unquoted = re.sub(r"'(?:[^']|'')*'", "", sql)
        if missing and re.search(rf"\b{missing}\.", unquoted, re.IGNORECASE):
            raise InvalidCapture(
                f"The condition of channel {self.channel!r} on {model._meta.label} uses the "
                f"{missing} row, which {self.captures}s do not have: capture them by a capture() "
                f"of their own, with on={self.captures!r}."
            )
        if "$outbox" in sql:
            raise InvalidCapture(
                f"The condition of channel {self.channel!r} on {model._meta.label} holds "
                "$outbox, which would end the trigger's function: write it as '$' || 'outbox'."
            )
        return f"({sql})"

    def _chosen(self, model: type[models.Model]) -> list[Any] | None:
        if self.fields is None and self.exclude is None:
            return None
        named = named_fields(model, self.fields if self.fields is not None else self.exclude or ())
        pk = model._meta.pk_fields
        return [
            field
            for field in table_fields(model)
            if field in pk or (field in named) == (self.fields is not None)
        ]


def _declare(channel: str, stream: bool) -> None:
    events.valid_channel(channel, "capture(): ")
    if stream:
        events.add_stream_channel(channel)


def message_type(model: type[models.Model]) -> str:
    """Return the type name of the messages about a model's table, such as "library.Author"."""
    return str(model._meta.concrete_model._meta.label)  # type: ignore[union-attr]


def captures_of(
    model: type[models.Model],
) -> Iterator[tuple[type[models.Model], CaptureTrigger]]:
    """Return the triggers that capture the model's table, each with the model it stands on.

    That may be a proxy of the table's own model.
    """
    for each in apps.get_models(include_auto_created=True):
        if each._meta.concrete_model is model._meta.concrete_model:
            for trigger in getattr(each._meta, "triggers", ()):
                if isinstance(trigger, CaptureTrigger):
                    yield each, trigger


def _operations(on: Operation | Iterable[Operation]) -> tuple[Operation, ...]:
    chosen = (on,) if isinstance(on, str) or not isinstance(on, Iterable) else tuple(on)
    if not chosen or set(chosen) - set(OPERATIONS):
        raise InvalidCapture(f'on={on!r}: use "insert", "update", "delete", or several of them.')
    return tuple(each for each in OPERATIONS if each in chosen)
